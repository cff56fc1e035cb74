#!/bin/sh
# Install or upgrade tapestryd for this user alone, without root: its own service of the user's systemd, in boxes of its own making.
# install-user.sh [DATA]: the folder of your text; ~/tapestry-data if none is named.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
fail() { echo "install-user.sh: $1" >&2; exit 1; }

[ "$(id -u)" != 0 ] || fail "is for ordinary users; as root there is deploy/install.sh"
python=${PYTHON:-python3}
"$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2> /dev/null ||
    fail "$python is not Python 3.11 or newer with venv (Debian: apt install python3-venv); name another: PYTHON=python3.12 sh $0"
systemctl --user show-environment > /dev/null 2>&1 ||
    fail "$(id -un) has no systemd session: log in at the desktop or by ssh, not by su or sudo; without systemd: README.md"
data=${1:-$HOME/tapestry-data}
share=${XDG_DATA_HOME:-$HOME/.local/share}/tapestry
state=${XDG_STATE_HOME:-$HOME/.local/state}/tapestry
config=${XDG_CONFIG_HOME:-$HOME/.config}

[ -x "$share/bin/python" ] || "$python" -m venv "$share"
if [ ! -e "$config/tapestry/tapestryd.toml" ]; then  # before the long download: can it shut itself in here?
    "$share/bin/pip" install --quiet --no-deps "$here/.."
    trouble=$("$share/bin/python" -P -c 'from tapestryd.host.box import trouble; print(trouble())')
    [ -z "$trouble" ] || fail "tapestryd cannot make boxes for its two sides here: $trouble (the units: sudo sh deploy/install.sh)"
fi
"$share/bin/pip" install --quiet --upgrade "$here/.."
mkdir -p "$HOME/.local/bin" "$config/systemd/user"
ln -sf "$share/bin/tapestry" "$HOME/.local/bin/tapestry"
"$share/bin/python" -P -m tapestryd.manual "${XDG_DATA_HOME:-$HOME/.local/share}" > /dev/null
sh "$here/systemd-user/configure.sh" "$config/tapestry" "$state" "${XDG_RUNTIME_DIR:-/run/user/$(id -u)}/tapestry" "$data"
sed -e "s|@SHARE@|$share|" -e "s|@CONFIG@|$config/tapestry|" "$here/systemd-user/tapestry.service" > "$config/systemd/user/tapestry.service"
sed "s|@SHARE@|$share|" "$here/systemd-user/tapestry-session.service" > "$config/systemd/user/tapestry-session.service"
systemctl --user daemon-reload
systemctl --user enable --quiet tapestry.service tapestry-session.service
systemctl --user restart tapestry.service
# What sees keys and clicks is of a desktop's session; where there is none yet, the next one starts it.
if systemctl --user is-active --quiet graphical-session.target; then systemctl --user restart tapestry-session.service; fi

text=$("$share/bin/tapestry" config get data.paths --config "$config/tapestry/tapestryd.toml")
echo "tapestry.service runs while you are logged in; 'sudo loginctl enable-linger $(id -un)' keeps it running. Text goes to $text; then:"
echo "  tapestry run join 'tapestry:…' && tapestry wait --for training --timeout 30m; tapestry status"
case ":$PATH:" in *":$HOME/.local/bin:"*) ;; *) echo "(tapestry is in $HOME/.local/bin; log in anew, or add it to PATH)" ;; esac
