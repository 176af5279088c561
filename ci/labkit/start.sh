# What process 1 of L1 does under either emulator.  The init scripts read this file first:
# it mounts what a kernel offers and loads the modules.

/bin/busybox mkdir -p /sbin /usr/bin /usr/sbin
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do
    options=
    [ -e "${module%.ko}.options" ] && options=$(cat "${module%.ko}.options")
    insmod "$module" $options || echo "lab: insmod $module failed"
done
ip link set lo up
ulimit -n 65536
echo 1 >/proc/sys/vm/overcommit_memory

take_settings() { # what the host says of this run
    . /run/settings
    date -u -s "@$LAB_TIME" >/dev/null
}

open_root() { # /root is what the command sees: /host, with folders that are writable
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
    # What lies below a folder that is covered by now is shown again.
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
}

run_command() { # the host's command in /root, with its output as it is here
    # In a namespace of its own whose root that is: what is only in a chroot may not make user
    # namespaces (unshare(2), EPERM), which passt does.
    unshare -m /bin/sh -c 'cd /root && mount --move . / && exec chroot . /bin/sh /run/lab-command'
}
