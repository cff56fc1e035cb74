#!/bin/sh
# systemd as the first process of the namespaces that we are called in, of a whole Debian: boot.sh ROOT
set -eu
mount --make-rprivate /
mount --bind "$1" "$1"
cd "$1"
mkdir -p old
exec sh "${0%/*}/../isolation/systemd.sh"
