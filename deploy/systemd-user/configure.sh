#!/bin/sh
# The example configurations with one user's own places in them: configure.sh CONFIG STATE RUNTIME DATA. What is there already stays.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
whole() { case $1 in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }  # in the files a path is relative to the file
config=$(whole "$1") state=$(whole "$2") runtime=$(whole "$3") data=$(whole "$4")
mkdir -p "$config"
[ -e "$config/trainer.toml" ] || mkdir -p "$data"
for name in tapestryd.toml trainer.toml; do
    [ -e "$config/$name" ] || sed -e '/ = .*"\/\(etc\|run\|srv\|var\)\//s/^#//' \
        -e "s|/run/tapestry/|$runtime/|" -e "s|/etc/tapestry/|$config/|" -e "s|/var/lib/tapestry-train|$state/train|" \
        -e "s|/var/lib/tapestry|$state/peer|" -e "s|/srv/tapestry/data|$data|" "$here/../$name" > "$config/$name"
done
