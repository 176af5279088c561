"""Both sides of the benchmark "vfio": a guest with a network card and a disk of the host.

`vfio.py vmlet CARD DISK KERNEL INITRD CMDLINE` and `vfio.py qemu KERNEL INITRD CMDLINE -- QEMU
FLAGS...` serve lines of stdin as `asked.py` says; the guest's program is `vfioload.c`.
"""

from __future__ import annotations

import sys

from asked import Ours, Qemu, serve

import vmlet


def main() -> None:
    """Serve one side."""
    side, *words = sys.argv[1:]
    if side == "vmlet":
        card, disk, *images = words
        serve(Ours(images, vmlet.Vfio(card), vmlet.Vfio(disk)))
    else:
        serve(Qemu(words[4:], words[:3]))


if __name__ == "__main__":
    main()
