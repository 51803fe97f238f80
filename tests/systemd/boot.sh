#!/bin/sh
# Boots systemd on a scratch copy of a root, as / is one: the first process of fresh namespaces runs this.
#
#   boot.sh FOLDER CGROUP ROOT [VENV CHECKOUT]
#
# FOLDER has two empty folders: root, to mount on, and host, which the inside sees as /run/host.
# CGROUP is an empty cgroup (v2). VENV and CHECKOUT appear as /srv/bellwire/venv and /srv/bellwire/src, if they are given.
# All mounts are this namespace's own and go with it.
set -eu
umask 022
folder=$1 cgroup=$2 lower=$3 venv=${4:-} checkout=${5:-} stage=${STAGE:-cgroup}

if [ "$stage" = cgroup ]; then
    # The new cgroup namespace has its root where the process is that makes it: so move there first.
    echo 0 > "$cgroup/cgroup.procs"
    STAGE=root exec unshare --cgroup sh "$0" "$@"
fi

mount -t tmpfs -o mode=755 bed "$folder/root"
cd "$folder/root"
mkdir upper work root
mount -t overlay -o "lowerdir=$lower,upperdir=$PWD/upper,workdir=$PWD/work" bed root
cd root

# /proc/sys and /sys are the kernel's, thus the host's: read-only, so that no sysctl or udev of ours touches them.
mount -t proc proc proc
for path in proc/sys proc/sysrq-trigger; do
    [ -e "$path" ] || continue
    mount --bind "$path" "$path"
    mount -o remount,bind,ro "$path"
done
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup

mount -t tmpfs -o mode=755 bed dev
mkdir dev/pts dev/shm dev/net
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
mount -t tmpfs -o mode=1777 bed dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
# Nodes of our own rather than binds of the host's: a chmod of those would be the host's too.
node() { mknod -m "$2" "dev/$1" c "$3" "$4"; }
node null 666 1 3
node zero 666 1 5
node full 666 1 7
node random 666 1 8
node urandom 666 1 9
node tty 666 5 0
node net/tun 666 10 200
[ ! -e /dev/kvm ] || node kvm 660 10 232

mount -t tmpfs -o mode=755 bed run
mount -t tmpfs -o mode=1777 bed tmp
mount -t tmpfs -o mode=755 bed srv
mkdir -p run/host run/systemd/journald.conf.d mnt
mount --bind "$folder/host" run/host
if [ -n "$venv" ]; then
    mkdir -p srv/bellwire/venv srv/bellwire/src
    mount --bind "$venv" srv/bellwire/venv
    mount --bind "$checkout" srv/bellwire/src
    mount -o remount,bind,ro srv/bellwire/src
fi

if [ "$lower" != / ]; then
    mkdir -m 1777 "$folder/disk"
    mount --bind "$folder/disk" var/tmp # all else lies in memory
fi

# Nothing of what the host starts and mounts is started and mounted here, and no kernel module is loaded.
mount -t tmpfs -o mode=755 bed etc/systemd/system
for unit in dbus.socket modprobe@.service systemd-modules-load.service sys-kernel-debug.mount sys-kernel-tracing.mount; do
    ln -s /dev/null "etc/systemd/system/$unit"
done
: > etc/fstab
: > etc/crypttab
tr -d - < /proc/sys/kernel/random/uuid > etc/machine-id
printf '[Journal]\nStorage=volatile\nRateLimitBurst=0\n' > run/systemd/journald.conf.d/bed.conf

pivot_root . mnt
umount -l /mnt
exec env -i container=bellwire NOTIFY_SOCKET=/run/host/ready PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin \
    /lib/systemd/systemd --unit=basic.target
