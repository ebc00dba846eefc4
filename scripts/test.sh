#!/bin/bash
# Run all tests. As root: in one go. Else those that need root by sudo; without sudo they are named and this fails.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${VENV:-.venv}/bin/python
unset PYTHONDONTWRITEBYTECODE # hundreds of agents start in the tests: their code is compiled once, as where it is installed
run() { "$@" -m pytest -n "${JOBS:-2}" --dist loadfile "${select[@]}"; }

select=()
if [[ $(id -u) == 0 ]]; then
  run "$python"
  exit $?
fi
select=(-m "not root")
run "$python" || exit $?
select=(-m root -p no:cacheprovider)
if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
  run sudo -n --preserve-env=CI PYTHONDONTWRITEBYTECODE=1 "$python"
  code=$?
  [[ $code == 5 ]] && code=0 # no test needs root
  exit "$code"
fi
left=$("$python" -m pytest --collect-only -q -m root 2>/dev/null | grep '::')
[[ -z $left ]] && exit 0
echo "These tests need root (namespaces, mounts, systemd) and were NOT run:" >&2
echo "$left" >&2
echo "Run: sudo make test" >&2
exit 1
