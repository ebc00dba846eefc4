#!/bin/bash
# Install the Debian packages that are missing for a purpose: venv, demo or test. Says nothing when all are there.
# Needs root or sudo only when something is missing. No service of a package is started, now or at the next boot.
set -euo pipefail
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

purpose=${1:?usage: scripts/system-packages.sh venv|demo|test}
policy=/usr/sbin/policy-rc.d
mark="# edge-agent: nothing starts while its packages are installed"

# A probe and the package that brings it. A probe with a slash is a file, else a command.
venv_needs=""
demo_needs="mosquitto:mosquitto"
test_needs="mosquitto:mosquitto mosquitto_sub:mosquitto-clients chromium:chromium ip:iproute2
  systemd-analyze:systemd ps:procps unshare:util-linux mount:mount mkfs.ext4:e2fsprogs gcc:gcc /usr/include/stdio.h:libc6-dev git:git
  /usr/include/modbus/modbus.h:libmodbus-dev socat:socat faketime:faketime node:nodejs npm:npm"
python=${PYTHON:-python3}
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  venv_needs="/nowhere:python3-venv"
fi

case $purpose in
  venv) needs=$venv_needs ;;
  demo) needs=$demo_needs ;;
  test) needs=$test_needs ;;
  *) echo "scripts/system-packages.sh: unknown purpose $purpose" >&2; exit 2 ;;
esac

packages=""
for need in $needs; do
  probe=${need%%:*}
  if [[ $probe == /* ]]; then [[ -e $probe ]] && continue; else command -v "$probe" >/dev/null && continue; fi
  packages="$packages ${need#*:}"
done
packages=${packages# }
[[ -n $packages ]] || exit 0

if [[ $(id -u) == 0 ]]; then
  as_root=(env)
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
  as_root=(sudo -n env)
elif [[ $purpose == demo ]]; then
  echo "mosquitto is not installed, and this user is neither root nor may use sudo without a password:"
  echo "the demo uses the broker that edge-agent brings along."
  exit 0
else
  echo "These Debian packages are missing: $packages" >&2
  echo "This user is neither root nor may use sudo without a password. Run: sudo apt-get install -y $packages" >&2
  exit 1
fi
if ! command -v apt-get >/dev/null; then
  [[ $purpose == demo ]] && exit 0
  echo "This is no Debian: install what corresponds to these packages by hand: $packages" >&2
  exit 1
fi

# policy-rc.d(8): 101 forbids every start. Whatever stood there comes back, also after an interrupt.
if "${as_root[@]}" test -e "$policy.edge-agent-saved"; then # an earlier run was killed in the middle
  "${as_root[@]}" mv -f "$policy.edge-agent-saved" "$policy"
elif "${as_root[@]}" grep -qsxF "$mark" "$policy"; then
  "${as_root[@]}" rm -f "$policy"
fi
restore() {
  if "${as_root[@]}" test -e "$policy.edge-agent-saved"; then
    "${as_root[@]}" mv -f "$policy.edge-agent-saved" "$policy"
  else
    "${as_root[@]}" rm -f "$policy"
  fi
}
if "${as_root[@]}" test -e "$policy"; then "${as_root[@]}" mv -f "$policy" "$policy.edge-agent-saved"; fi
trap restore EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
printf '#!/bin/sh\n%s\nexit 101\n' "$mark" | "${as_root[@]}" tee "$policy" >/dev/null
"${as_root[@]}" chmod 755 "$policy"

install() {
  # shellcheck disable=SC2086 # a list of words
  "${as_root[@]}" DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $packages
}
echo "Installing Debian packages: $packages"
log=$(mktemp)
done_well=no
if compgen -G "/var/lib/apt/lists/*_Packages*" >/dev/null && install >"$log" 2>&1; then
  done_well=yes
elif { "${as_root[@]}" apt-get update -q && install; } >"$log" 2>&1; then
  done_well=yes
fi
if [[ $done_well == no ]]; then
  tail -n 15 "$log" >&2
  rm -f "$log"
  if [[ $purpose == demo ]]; then
    echo "mosquitto could not be installed: the demo uses the broker that edge-agent brings along."
    exit 0
  fi
  echo "apt-get could not install: $packages (its last lines are above)" >&2
  exit 1
fi
rm -f "$log"
# The demo and the tests start a broker of their own; Debian's would take port 1883 at the next boot.
if [[ " $packages " == *" mosquitto "* ]] && command -v systemctl >/dev/null; then
  "${as_root[@]}" systemctl disable -q mosquitto.service 2>/dev/null || true
fi
