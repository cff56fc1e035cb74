#!/bin/sh
# Build tapestryd_VERSION_ARCH.deb into a folder, with Debian's own tools: deploy/debian/build.sh OUT
# The package holds a complete environment under /opt/tapestry: nothing is fetched when it is installed. It is of this machine's
# architecture and Python, so it installs on the release that it was built on.
set -eu
umask 022
deploy=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
out=${1:?name the folder that the package is to be written to}
for tool in dpkg-deb dpkg-architecture; do
    command -v "$tool" > /dev/null || { echo "build.sh: $tool is missing: apt install dpkg-dev" >&2; exit 1; }
done
python=/usr/bin/python3
"$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' || { echo "build.sh: needs Debian's python3 (3.11 or newer) and python3-venv" >&2; exit 1; }
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 0755 "$root"

"$python" -m venv "$root/opt/tapestry"
"$root/opt/tapestry/bin/pip" install --quiet "$deploy/.."
version=$("$root/opt/tapestry/bin/python" -c 'import tapestryd; print(tapestryd.__version__)')
# The environment will lie elsewhere: the first line of its programs says where.
grep -rlI "$root" "$root/opt/tapestry/bin" "$root/opt/tapestry/pyvenv.cfg" | xargs sed -i "s|$root||g"
sh "$deploy/place.sh" "$root" /usr/lib/systemd/system "$root/opt/tapestry/bin/python"
gzip -9n "$root"/usr/share/man/man*/*
mkdir -p "$root/usr/bin" "$root/DEBIAN" "$out"
ln -s /opt/tapestry/bin/tapestry "$root/usr/bin/tapestry"

minor=$("$python" -c 'import sys; print(f"{sys.version_info[0]}.{sys.version_info[1]}")')
cat > "$root/DEBIAN/control" <<EOF
Package: tapestryd
Version: $version
Architecture: $(dpkg-architecture -qDEB_HOST_ARCH)
Maintainer: the tapestryd authors <tapestryd@localhost>
Section: science
Priority: optional
Installed-Size: $(du -sk "$root" | cut -f1)
Depends: python$minor, systemd (>= 249)
Description: Consortium training of one open model, peer to peer
 Partners train one shared language model together, each on its own data, which
 never leaves: only parameter vectors circulate, and there is no coordinator.
 Two services: one may talk to the swarm and sees nothing of the data, the other
 reads the data and has no network.
EOF
printf '/etc/tapestry/tapestryd.toml\n/etc/tapestry/trainer.toml\n' > "$root/DEBIAN/conffiles"
for script in postinst prerm postrm; do install -m 0755 "$deploy/debian/$script" "$root/DEBIAN/$script"; done
dpkg-deb --root-owner-group -Zgzip -z1 --build "$root" "$out"
