#!/bin/sh
# The example configurations with one user's own places in them: configure.sh CONFIG STATE RUNTIME DATA. What is there already stays.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
config=$1 state=$2 runtime=$3 data=$4
mkdir -p "$config" "$data"
for name in tapestryd.toml trainer.toml; do
    [ -e "$config/$name" ] || sed -e '/ = .*"\/\(etc\|run\|srv\|var\)\//s/^#//' \
        -e "s|/run/tapestry/|$runtime/|" -e "s|/etc/tapestry/|$config/|" -e "s|/var/lib/tapestry-train|$state/train|" \
        -e "s|/var/lib/tapestry|$state/peer|" -e "s|/srv/tapestry/data|$data|" "$here/../$name" > "$config/$name"
done
