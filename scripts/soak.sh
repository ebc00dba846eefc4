#!/bin/bash
# The long rigs, one after the other. Each prints its seed and figures; at the end a line for each, status 1 when one failed.
#   SEED=2 for other faults; KILLS, CUTS, AGENT_CUTS, RUNS, SECONDS_OF_FAULTS, SEEDS, STEPS, HOURS, DAYS for longer or shorter runs;
#   ONLY="oracle kills" for some of them.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${VENV:-.venv}/bin/python
seed=${SEED:-1}
export SEED=$seed
unset PYTHONDONTWRITEBYTECODE # thousands of agents start here: their code is compiled once, as where it is installed
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

results=()
failed=0
rig() { # name, then the command
  local name=$1 began=$SECONDS
  shift
  [[ -n ${ONLY:-} && " $ONLY " != *" $name "* ]] && return
  echo "=== $name: $*"
  if "$@" </dev/null; then results+=("ok      $name ($((SECONDS - began)) s)"); else results+=("FAILED  $name ($((SECONDS - began)) s)") failed=1; fi
}
fails() { # a negative control: the command has to end with status 1
  "$@" && return 1
  [[ $? == 1 ]]
}

rig oracle "$python" -m bench.oracle --seed "$seed" --runs "${RUNS:-20}" --seconds "${SECONDS_OF_FAULTS:-60}"
while read -r promise faults; do
  rig "control:$promise" fails "$python" -m bench.oracle --devices 5 --signals 10 --seed "$seed" --seconds 12 \
    --only "$faults" --break "$promise"
done <<'END'
consumer line_cut
publisher line_half_open
restarts agent_killed
beats agent_stands_still
numbers agent_killed
value line_cut
END
rig kills "$python" -m bench.oracle --seed "$seed" --kills "${KILLS:-1000}"
rig power "$python" -m bench.powercut --seed "$seed" --cuts "${CUTS:-500}" --control 20
rig agent-power "$python" -m bench.powercut agent --seed "$seed" --cuts "${AGENT_CUTS:-50}" --control 5
rig simulator env SEEDS="${SEEDS:-1000}" STEPS="${STEPS:-1000}" "$python" -m pytest -n "${JOBS:-2}" -rP --timeout 36000 tests/test_simulator.py
rig replay env HOURS="${HOURS:-24}" "$python" -m pytest -n 0 -rP --timeout 36000 tests/test_simulator_replay.py
rig history env HISTORY_KILLS=500 HISTORY_DAMAGES=5000 "$python" -m pytest -n "${JOBS:-2}" -rP --timeout 36000 tests/test_history.py -k "kill_9 or damage"
rig soak "$python" -m bench.soak --seed "$seed" --days "${DAYS:-30}"
rig control:soak fails "$python" -m bench.soak --seed "$seed" --days 4 --leak
rig modbus env EXCHANGES=1000000 REAL_EXCHANGES=100000 "$python" -m pytest -n "${JOBS:-2}" -rP --timeout 3600 tests/test_modbus_rigs.py
rig store env STEPS=1000000 DAMAGES=100000 FAULTS=500 "$python" -m pytest -n "${JOBS:-2}" -rP --timeout 36000 \
  tests/test_store_model.py tests/test_store_damage.py tests/test_store_faults.py -k "random or whatever or whichever"
rig opcua env RESTARTS=100 "$python" -m pytest -n 0 -rP --timeout 3600 tests/test_opcua_faults.py -k restart_with

echo "=== seed $seed"
printf '%s\n' "${results[@]}"
exit "$failed"
