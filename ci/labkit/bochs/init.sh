#!/bin/busybox sh
# Process 1 of L1 under the emulator without file sharing.  Mounts the root image, which lies
# in memory, read-only; runs the command in it; sends its output, its files and its status.
#
# /run holds `command`, a shell script that the host wrote with all quoting done, and
# `settings`, shell assignments.  Lines on the console are for people; nothing parses them.
/bin/busybox mkdir -p /sbin /usr/bin /usr/sbin
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do
    insmod "$module" || echo "lab: insmod $module failed"
done
ip link set lo up
ulimit -n 65536
echo 1 >/proc/sys/vm/overcommit_memory
. /run/settings
date -u -s "@$LAB_TIME" >/dev/null

mount -t ext4 -o ro,dax,noatime /dev/pmem0 /host || echo "lab: no root image"
mount --bind /host /root
mount -t proc proc /root/proc
mount -t sysfs sysfs /root/sys
mount -t debugfs debugfs /root/sys/kernel/debug
mount -t devtmpfs devtmpfs /root/dev
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts -o ptmxmode=666 devpts /root/dev/pts
for folder in dev/shm run tmp; do mount -t tmpfs -o mode=1777 tmpfs "/root/$folder"; done
for link in fd: stdin:/0 stdout:/1 stderr:/2; do
    ln -snf "/proc/self/fd${link#*:}" "/root/dev/${link%%:*}"
done
# What the image has below a folder that is covered by now is shown again.
printf '%s\n' "$LAB_VISIBLE" | while IFS= read -r path; do
    [ -n "$path" ] || continue
    if [ -d "/host$path" ]; then
        mkdir -p "/root$path"
    else
        mkdir -p "/root${path%/*}"
        touch "/root$path"
    fi
    mount --bind "/host$path" "/root$path"
done
mkdir -p "/root$LAB_OUT"
mount -t tmpfs -o mode=755 tmpfs "/root$LAB_OUT"

cp /run/command /root/run/lab-command
relay run chroot /root /bin/sh /run/lab-command </dev/null
status=$?
tar -C "/root$LAB_OUT" -cf - . | relay send f
echo $status | relay send x
poweroff -f
