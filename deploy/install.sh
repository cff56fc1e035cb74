#!/bin/sh
# Install tapestryd as two services, or upgrade it: as root, from a copy of the repository. Configuration, identity and state are kept.
set -eu
umask 022
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
fail() { echo "install.sh: $1" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "must be run as root (sudo sh $0); for one user without root: deploy/install-user.sh"
command -v systemctl > /dev/null || fail "there is no systemd here; run 'tapestryd --config tapestryd.toml' instead"
version=$(systemctl --version | awk 'NR == 1 {print int($2)}')
[ "$version" -ge 249 ] || fail "systemd $version is too old for the units; 249 or newer is needed"
python=${PYTHON:-python3}
"$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2> /dev/null ||
    fail "$python is not Python 3.11 or newer with venv (Debian: apt install python3-venv); name another: PYTHON=python3.12 sh $0"

[ -x /opt/tapestry/bin/python ] || "$python" -m venv /opt/tapestry
/opt/tapestry/bin/pip install --quiet --upgrade "$here/.."
ln -sf /opt/tapestry/bin/tapestry /usr/local/bin/tapestry
sh "$here/place.sh" "" /etc/systemd/system /opt/tapestry/bin/python
systemd-sysusers /usr/lib/sysusers.d/tapestry.conf
systemd-tmpfiles --create /usr/lib/tmpfiles.d/tapestry.conf
systemctl daemon-reload
systemctl enable --quiet tapestry.target tapestryd.service tapestryd.socket tapestry-trainer.socket
systemctl stop tapestry-trainer.service 2> /dev/null || true
systemctl restart tapestryd.socket tapestry-trainer.socket tapestryd.service

echo "$(/opt/tapestry/bin/tapestry version) is running. Text goes to /srv/tapestry/data (group tapestry-train); then:"
echo "  tapestry run join 'tapestry:…' && tapestry wait --for training && tapestry status"
