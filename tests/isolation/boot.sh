#!/bin/sh
# systemd as the first process of the namespaces that we are called in: boot.sh ROOT REPOSITORY PREFIX PYTHON
# ROOT: an empty folder, where a root is put together of this machine's /usr, a new /etc and /var, and deploy/ as it is installed.
# PREFIX: of the Python environment, which becomes /opt/tapestry. PYTHON: the interpreter behind it.
set -eu
root=$1 repository=$2 prefix=$3 python=$4
mount --make-rprivate /
mount -t tmpfs -o mode=755,size=256m tapestry "$root"
cd "$root"
mkdir -p usr etc/systemd/system etc/sysusers.d etc/tmpfiles.d etc/tapestry var/lib var/log var/tmp run tmp proc sys dev opt srv home root mnt media old
chmod 1777 tmp var/tmp
for name in bin sbin lib lib64; do ln -s "usr/$name" "$name"; done
mount --rbind /usr usr && mount -o remount,bind,ro usr
for name in ld.so.cache ld.so.conf ld.so.conf.d alternatives nsswitch.conf hosts os-release ssl; do
    [ ! -e "/etc/$name" ] || cp -a "/etc/$name" etc/
done
grep -E '^(root|nobody|systemd-|messagebus)' /etc/passwd > etc/passwd
grep -vE '^tapestry' /etc/group > etc/group
printf '%032x\n' 1 > etc/machine-id

# The environment of this interpreter, where the units look for it.
mkdir -p opt/tapestry/bin opt/tapestry/lib opt/python
base=$(dirname "$(dirname "$python")")
[ "$base" = /usr ] || { mount --bind "$base" opt/python && python=/opt/python/bin/${python##*/}; }
mount --bind "$prefix/lib" opt/tapestry/lib
echo "home = ${python%/*}" > opt/tapestry/pyvenv.cfg
ln -s "$python" opt/tapestry/bin/python3
for name in tapestryd:tapestryd.__main__ tapestry:tapestryd.cli tapestry-trainer:tapestryd.host.steward; do
    printf '#!/opt/tapestry/bin/python3 -P\nimport sys\nfrom %s import main\nsys.exit(main())\n' "${name#*:}" > "opt/tapestry/bin/${name%:*}"
    chmod 755 "opt/tapestry/bin/${name%:*}"
done
for name in tapestryd tapestry-trainer; do  # not installed, but from here; and a library of a Python built for another place
    mkdir -p "etc/systemd/system/$name.service.d"
    printf '[Service]\nEnvironment=PYTHONPATH=/opt/tapestry/source LD_LIBRARY_PATH=/opt/python/lib\n' \
        > "etc/systemd/system/$name.service.d/50-python.conf"
done
mkdir -p opt/tapestry/source/tapestryd opt/tapestry/source/protocols opt/tapestry/source/tests
for name in tapestryd protocols tests; do mount --bind "$repository/$name" "opt/tapestry/source/$name"; done

install -m 0644 "$repository"/deploy/systemd/* etc/systemd/system/
install -m 0644 "$repository/deploy/sysusers.d/tapestry.conf" etc/sysusers.d/
install -m 0644 "$repository/deploy/tmpfiles.d/tapestry.conf" etc/tmpfiles.d/
install -m 0640 "$repository/deploy/tapestryd.toml" "$repository/deploy/trainer.toml" etc/tapestry/
ln -s /usr/lib/systemd/system/basic.target etc/systemd/system/default.target
for name in systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udev-trigger.service getty.target; do
    ln -s /dev/null "etc/systemd/system/$name"
done

exec sh "${0%/*}/systemd.sh"
