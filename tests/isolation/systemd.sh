#!/bin/sh
# systemd as the first process of the namespaces that we are called in; its root is the folder that we are in, a mount with a folder old/.
set -eu
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tapestry dev
for name in null zero full random urandom tty; do touch "dev/$name"; mount --bind "/dev/$name" "dev/$name"; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=1777 tapestry dev/shm
mount -t tmpfs -o mode=755 tapestry run
pivot_root . old
umount -l old
ip link set lo up
exec env -i container=tapestry PATH=/usr/bin:/usr/sbin /usr/lib/systemd/systemd --system
