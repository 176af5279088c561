"""Both sides of the benchmark "vsock": a guest that talks to the host.

`vsock.py vmlet PATH KERNEL INITRD CMDLINE` and `vsock.py qemu PATH KERNEL INITRD CMDLINE --
QEMU FLAGS...` serve lines of stdin as `asked.py` says; the guest's program is `vsockload.c`.
"""

from __future__ import annotations

import sys

from asked import Ours, Qemu, serve

import vmlet


def main() -> None:
    """Serve one side."""
    side, path, *files = sys.argv[1:]
    images, command = files[:3], files[4:]
    serve(Ours(images, vmlet.Vsock(path=path)) if side == "vmlet" else Qemu(command, images))


if __name__ == "__main__":
    main()
