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
link=/usr/bin/tapestry  # not /usr/local/bin, which sudo leaves out on RHEL
if [ ! -e "$link" ] || [ "$(readlink "$link")" = /opt/tapestry/bin/tapestry ]; then
    ln -sf /opt/tapestry/bin/tapestry "$link"
else
    echo "install.sh: $link is another program's and stays; ours is /opt/tapestry/bin/tapestry" >&2
fi
sh "$here/place.sh" "" /etc/systemd/system /opt/tapestry/bin/python
systemd-sysusers /usr/lib/sysusers.d/tapestry.conf
systemd-tmpfiles --create /usr/lib/tmpfiles.d/tapestry.conf
systemctl daemon-reload
systemctl enable --quiet tapestry.target tapestryd.service tapestryd.socket tapestry-trainer.socket
systemctl stop tapestry-trainer.service 2> /dev/null || true
systemctl restart tapestryd.socket tapestry-trainer.socket tapestryd.service

echo "$(/opt/tapestry/bin/tapestry version) is running. Text goes to /srv/tapestry/data (group tapestry-train); then, as root or as a"
echo "user in the group tapestry-admin (usermod -aG tapestry-admin YOU, and log in anew):"
echo "  tapestry run join 'tapestry:…' && tapestry wait --for training --timeout 30m; tapestry status"
echo "Documents: /usr/share/doc/tapestryd/deploy/OPERATING.md and around it"
