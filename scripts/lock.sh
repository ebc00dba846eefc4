#!/bin/bash
# Write the locks anew from pyproject.toml: pinned, with hashes, naming no host. `scripts/lock.sh --upgrade` moves pins.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$(command -v uv || true)
if [[ -z $uv ]]; then
  tools=$(mktemp -d)
  trap 'rm -rf "$tools"' EXIT
  python3 -m venv "$tools"
  "$tools/bin/pip" install -q uv
  uv=$tools/bin/uv
fi
compile() {
  "$uv" pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate "$@" >/dev/null
}
compile "$@" pyproject.toml --extra demo --group dev -o requirements-dev.lock
compile -c requirements-dev.lock pyproject.toml --extra demo -o requirements.lock
compile -c requirements-dev.lock --group build -o requirements-build.lock
if grep -nE '://|--(index|find|extra)' ./*.lock; then
  echo "a lock names a host" >&2
  exit 1
fi
