#!/bin/bash
# Install edge-agent as a service: its own virtual environment from the lock, the unit, the user, a first configuration.
# What an operator has written is never overwritten; nothing is enabled or started.
#   PREFIX (/opt/edge-agent), SYSCONFDIR (/etc), DESTDIR (empty: this machine)
set -euo pipefail
cd "$(dirname "$0")/.."
prefix=${PREFIX:-/opt/edge-agent}
etc=${SYSCONFDIR:-/etc}
dest=${DESTDIR:-}
umask 022

if [[ -z $dest && $(id -u) != 0 ]]; then
  echo "Installing into $prefix needs root. Run: sudo make install" >&2
  exit 1
fi
# The service cannot see an interpreter under /root or /home (ProtectHome in the unit).
visible() { case $(readlink -f "$(command -v "$1")") in /root/* | /home/*) return 1 ;; esac; }
fit() { command -v "$1" >/dev/null && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
python=""
hidden=""
for candidate in "${PYTHON:-python3}" /usr/bin/python3 python3.13 python3.12 python3.11; do
  fit "$candidate" || continue
  if visible "$candidate"; then python=$candidate; break; fi
  hidden=${hidden:-$candidate}
done
if [[ -z $python && -n $hidden && -n $dest ]]; then
  echo "Note: $hidden lies under a home directory, which the service cannot see; it does for a look at the tree."
  python=$hidden
fi
if [[ -z $python ]]; then
  echo "The service needs Python 3.11 or later outside of /root and /home. On Debian 12: apt-get install python3 python3-venv" >&2
  exit 1
fi
PYTHON=$python scripts/system-packages.sh venv

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pip=(-m pip --disable-pip-version-check)
echo "Building the wheel"
"$python" -m venv "$work/build"
"$work/build/bin/python" "${pip[@]}" install -q --require-hashes --only-binary :all: -r requirements-build.lock
"$work/build/bin/python" "${pip[@]}" wheel -q --no-deps --no-build-isolation -w "$work" .

echo "Installing into $dest$prefix"
venv=$dest$prefix
[[ -x $venv/bin/python ]] || "$python" -m venv "$venv"
"$venv/bin/python" "${pip[@]}" install -q --require-hashes --only-binary :all: -r requirements.lock
"$venv/bin/python" "${pip[@]}" install -q --no-deps --force-reinstall "$work"/edge_agent-*.whl
if [[ -n $dest ]]; then # the tree will stand elsewhere: name that place
  { grep -rlIF --exclude-dir=lib -- "$venv" "$venv" || true; } | xargs -r sed -i "s#$venv#$prefix#g"
else
  chown -R root:root "$venv"
fi
chmod -R go-w "$venv"

install -d "$dest$etc/systemd/system" "$dest$etc/sysusers.d"
sed "s#/opt/edge-agent/#$prefix/#g; s#/etc/edge-agent#$etc/edge-agent#g" systemd/edge-agent.service >"$work/unit"
install -m 644 "$work/unit" "$dest$etc/systemd/system/edge-agent.service"
install -m 644 systemd/edge-agent.sysusers "$dest$etc/sysusers.d/edge-agent.conf"
owner=()
if [[ -z $dest ]]; then
  if command -v systemd-sysusers >/dev/null; then
    systemd-sysusers "$etc/sysusers.d/edge-agent.conf"
  elif ! id edge-agent >/dev/null 2>&1; then
    useradd --system --user-group --no-create-home --home-dir /var/lib/edge-agent --shell /usr/sbin/nologin edge-agent
  fi
  owner=(-o edge-agent -g edge-agent)
fi
# The page edits the configuration in its own folder, hence the agent's user.
install -d -m 750 "${owner[@]}" "$dest$etc/edge-agent"
install -m 640 "${owner[@]}" config/agent.schema.json "$dest$etc/edge-agent/agent.schema.json"
if [[ ! -e $dest$etc/edge-agent/agent.yaml ]]; then
  install -m 640 "${owner[@]}" config/agent.yaml "$dest$etc/edge-agent/agent.yaml"
  echo "A first configuration lies in $etc/edge-agent/agent.yaml: write your machines into it."
fi
if [[ -z $dest && -d /run/systemd/system ]]; then systemctl daemon-reload; fi

cat <<END
edge-agent is installed in $prefix. Then:
  $prefix/bin/edge-agent check $etc/edge-agent/agent.yaml
  systemctl enable --now edge-agent        # after an update: systemctl restart edge-agent
END
