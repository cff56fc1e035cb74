#!/bin/sh
# Put units, users, folders, configurations, alerts, documents, manual pages and completions where they belong under a root:
# place.sh DEST UNITS PYTHON
# DEST "" is this machine. UNITS: the folder of unit files, e.g. /etc/systemd/system. PYTHON: of the environment that tapestryd is in.
# A configuration that is there already stays.
set -eu
umask 022
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
dest=$1 units=$2 python=$3
install -d -m 0755 "$dest$units" "$dest/usr/lib/sysusers.d" "$dest/usr/lib/tmpfiles.d" "$dest/etc/tapestry" "$dest/usr/share/tapestry"
install -m 0644 "$here"/systemd/* "$dest$units/"
install -d -m 0755 "$dest/usr/lib/systemd/user"
sed "s|@SHARE@|/opt/tapestry|" "$here/systemd-user/tapestry-session.service" > "$dest/usr/lib/systemd/user/tapestry-session.service"
install -m 0644 "$here/sysusers.d/tapestry.conf" "$dest/usr/lib/sysusers.d/tapestry.conf"
install -m 0644 "$here/tmpfiles.d/tapestry.conf" "$dest/usr/lib/tmpfiles.d/tapestry.conf"
install -m 0644 "$here/prometheus/alerts.yml" "$here/grafana/tapestry.json" "$dest/usr/share/tapestry/"
(cd "$here/.." && find LICENSE README.md deploy protocols tapestryd -name '*.md' -o -name LICENSE) | while read -r name; do
    install -D -m 0644 "$here/../$name" "$dest/usr/share/doc/tapestryd/$name"
done
for name in tapestryd.toml trainer.toml; do
    [ -e "$dest/etc/tapestry/$name" ] || install -m 0640 "$here/$name" "$dest/etc/tapestry/$name"
done
"$python" -P -m tapestryd.manual "$dest/usr/share" > /dev/null
