#!/bin/busybox sh
# The bed's first process. It lays a scratch file system over the host's root, moves there, runs the command and
# powers off. The command's output goes to one port of the host's, its status to another.

if [ "$1" != moved ]; then
    /bin/busybox --install -s /bin
    export PATH=/bin
    . /bed/settings
    mkdir -p /proc /dev /host /scratch /root
    mount -t proc proc /proc
    mount -t devtmpfs dev /dev
    for module in $MODULES; do insmod "/bed/modules/$module.ko" || echo "no module $module"; done
    mount -t virtiofs -o ro host /host
    mount -t tmpfs -o "size=$SCRATCH" scratch /scratch
    mkdir /scratch/upper /scratch/work
    mount -t overlay -o lowerdir=/host,upperdir=/scratch/upper,workdir=/scratch/work overlay /root || exec sh
    cd /root
    mkdir -p proc sys dev run tmp
    mount --move /dev dev
    mount -t proc proc proc
    mount -t sysfs sysfs sys
    mount -t tmpfs run run
    mkdir -p dev/pts dev/shm run/bed
    mount -t devpts -o ptmxmode=666 pts dev/pts
    mount -t tmpfs shm dev/shm
    ln -sf /proc/self/fd dev/fd
    cp /bed/* /bin/busybox init run/bed/ 2>/dev/null
    cp /init run/bed/init
    umount /proc
    exec switch_root /root /run/bed/busybox sh /run/bed/init moved
fi

. /run/bed/settings
hostname bed
/run/bed/busybox ip link set lo up
ulimit -c 0
(. /run/bed/command) </dev/null >"$(echo /dev/vport*p1)" 2>&1
echo $? >"$(echo /dev/vport*p2)"
/run/bed/busybox poweroff -f
