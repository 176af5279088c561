"""Both sides of the benchmark "net": a guest that talks to the host.

`net.py vmlet TAP VHOST KERNEL INITRD CMDLINE` and `net.py qemu TAP VHOST KERNEL INITRD CMDLINE --
QEMU FLAGS...` serve lines of stdin as `asked.py` says; the guest's program is `netload.c`.
"""

from __future__ import annotations

import sys

from asked import Ours, Qemu, serve

import vmlet


def main() -> None:
    """Serve one side."""
    side, tap, vhost, *files = sys.argv[1:]
    images, command = files[:3], files[4:]
    if side == "vmlet":
        serve(Ours(images, vmlet.Net(tap=tap, vhost=vhost == "on")))
    else:
        link = f"tap,id=net,ifname={tap},script=no,downscript=no,vhost={vhost}"
        serve(Qemu([*command, "-netdev", link], images))


if __name__ == "__main__":
    main()
