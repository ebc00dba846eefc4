#!/bin/bash
# Make the virtual environment and install what a lock names, then the project itself (editable, without the network).
#   scripts/venv.sh VENV LOCK
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:?usage: scripts/venv.sh VENV LOCK}
lock=${2:?usage: scripts/venv.sh VENV LOCK}
wanted='import sys; sys.exit(sys.version_info < (3, 11))'

python=""
for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
  if command -v "$candidate" >/dev/null && "$candidate" -c "$wanted" 2>/dev/null; then python=$candidate; break; fi
done
if [[ -z $python ]]; then
  found=$(python3 --version 2>/dev/null || echo "no python3")
  echo "edge-agent needs Python 3.11 or later; found: $found. On Debian 12: apt-get install python3 python3-venv" >&2
  exit 1
fi
if ! "$venv/bin/python" -c "$wanted" 2>/dev/null; then # none yet, or its interpreter is gone
  PYTHON=$python scripts/system-packages.sh venv
  echo "Making $venv with $("$python" --version)"
  "$python" -m venv --clear "$venv"
fi
pip=("$venv/bin/python" -m pip --disable-pip-version-check)
echo "Installing what $lock names (with hashes; a minute or two the first time)"
"${pip[@]}" install -q --require-hashes --only-binary :all: -r requirements-build.lock -r "$lock"
"${pip[@]}" install -q --no-deps --no-build-isolation --editable .
"$venv/bin/python" -m compileall -q edge_agent drivers detectors # as an installed package is: a start is 0.3 s shorter
