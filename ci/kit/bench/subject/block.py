"""Both sides of the benchmark "block": a guest that reads and writes a disk.

`block.py vmlet IMAGE KERNEL INITRD CMDLINE` and `block.py qemu IMAGE KERNEL INITRD CMDLINE --
QEMU FLAGS...` serve lines of stdin as `asked.py` says; the guest's program is `blockload.c`.
"""

from __future__ import annotations

import sys

from asked import Ours, Qemu, serve

import vmlet


def main() -> None:
    """Serve one side."""
    side, image, *files = sys.argv[1:]
    images, command = files[:3], files[4:]
    serve(Ours(images, vmlet.Disk(image)) if side == "vmlet" else Qemu(command, images))


if __name__ == "__main__":
    main()
