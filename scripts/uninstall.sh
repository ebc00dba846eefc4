#!/bin/bash
# Remove the service and its virtual environment. The configuration and the data stay, and so does the user who owns them.
set -euo pipefail
prefix=${PREFIX:-/opt/edge-agent}
etc=${SYSCONFDIR:-/etc}
dest=${DESTDIR:-}
if [[ -z $dest && $(id -u) != 0 ]]; then
  echo "Removing $prefix needs root. Run: sudo make uninstall" >&2
  exit 1
fi
if [[ -z $dest && -d /run/systemd/system ]]; then systemctl disable --now edge-agent.service 2>/dev/null || true; fi
if [[ -e $dest$prefix && ! -e $dest$prefix/pyvenv.cfg ]]; then
  echo "$dest$prefix is no virtual environment of edge-agent: it is left alone" >&2
  exit 1
fi
rm -rf -- "${dest}${prefix:?}"
rm -f "$dest$etc/systemd/system/edge-agent.service" "$dest$etc/sysusers.d/edge-agent.conf"
if [[ -z $dest && -d /run/systemd/system ]]; then systemctl daemon-reload; fi
echo "Removed. The configuration ($etc/edge-agent) and the data (/var/lib/edge-agent) are still there."
