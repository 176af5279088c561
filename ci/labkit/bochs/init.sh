#!/bin/busybox sh
# Process 1 of L1 under the emulator without file sharing.  Mounts the root image, which lies
# in memory, read-only; runs the command in it; sends its output, its files and its status.
#
# /run holds `command`, a shell script that the host wrote with all quoting done, and
# `settings`, shell assignments.  Lines on the console are for people; nothing parses them.
. /start.sh
take_settings

mount -t ext4 -o ro,dax,noatime /dev/pmem0 /host || echo "lab: no root image"
open_root
mkdir -p "/root$LAB_OUT"
mount -t tmpfs -o mode=755 tmpfs "/root$LAB_OUT"

cp /run/command /root/run/lab-command
relay run chroot /root /bin/sh /run/lab-command </dev/null
status=$?
tar -C "/root$LAB_OUT" -cf - . | relay send f
echo $status | relay send x
poweroff -f
