#!/bin/busybox sh
# Process 1 of L1.  Loads the modules, waits in the saved state for a command,
# mounts the host's file system read-only with the run's two writable folders,
# runs the command in it and reports its status.
#
# The run folder (9p tag "run") holds: `command`, a shell script that the host
# wrote with all quoting done; `settings`, shell assignments; `status`, written
# here.  Lines on the console are for people, nothing parses them but the host's
# wait for "LAB-WAITING".
. /start.sh

finish() { # finish STATUS: tell the host through the debug-exit port that the end was reached
    # Bit 6 tells this value from the emulator's own failures; see machine.py.
    printf "\\x$(printf %x $((64 | ($1 & 63))))" | dd of=/dev/port bs=1 seek=244 conv=notrunc 2>/dev/null
    poweroff -f
}

count() { ls /sys/bus/pci/devices | wc -l; }
expected=$(count)
echo LAB-WAITING
go=/sys/firmware/qemu_fw_cfg/by_name/opt/vmlet/go/raw
while [ "$(cat $go)" != 1 ]; do usleep 10000; done

share() { mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,cache=loose,$3" "$1" "$2" || echo "lab: no share $1"; }
mkdir -p /run
share run /run rw
take_settings

share host /host ro
open_root
[ -d "/root$LAB_OUT" ] || mkdir -p "/root$LAB_OUT"
share out "/root$LAB_OUT" rw

# Hot-plugged devices appear a moment after the state is resumed.
tries=0
expected=$((expected + LAB_PLUGGED))
while [ "$(count)" -lt $expected ] && [ $tries -lt 1000 ]; do
    usleep 10000
    tries=$((tries + 1))
done

port() { # port NAME: the device of a virtio-serial port
    for entry in /sys/class/virtio-ports/*; do
        [ "$(cat "$entry/name")" = "$1" ] && echo "/dev/${entry##*/}"
    done
}
# A port can be opened once only; pipes in between let the command open
# /dev/stdout and /dev/stderr again.
mkfifo /stdout /stderr
cat </stdout >"$(port stdout)" &
first=$!
cat </stderr >"$(port stderr)" &
second=$!
cp /run/command /root/run/lab-command
run_command </dev/null >/stdout 2>/stderr
status=$?
# A process left behind may hold the pipes open: it gets a second.
tries=0
while [ $tries -lt 100 ] && { kill -0 $first || kill -0 $second; } 2>/dev/null; do
    usleep 10000
    tries=$((tries + 1))
done
echo $status >/run/status
# A process left behind keeps its view of the mounts: unmounting alone would write nothing back.
sync
umount "/root$LAB_OUT" 2>/dev/null
umount /run || sync
finish $status
