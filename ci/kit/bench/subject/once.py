"""The Python process of the benchmark "boot-kvm": boots a VM and prints what it prints.

`once.py KERNEL INITRD CMDLINE`.
"""

from __future__ import annotations

import sys

import vmlet

if __name__ == "__main__":
    kernel, initrd, cmdline = sys.argv[1:]
    vm = vmlet.VM(kernel=kernel, initramfs=initrd, cmdline=cmdline, memory="256M", engine="kvm")
    vm.start()
    while piece := vm.console.read(timeout=None):
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
