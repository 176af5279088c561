"""The subject of the benchmark "create": VMs made, run and closed through the public API.

Reads lines "MODE COUNT"; for each makes, runs and closes COUNT VMs and prints one line
"CREATE CLOSE" a VM, in nanoseconds of CLOCK_MONOTONIC. MODE "sync": CLOSE lasts until the kernel
has freed everything. MODE "handoff": CLOSE is what the caller waits for; the next VM begins when
the kernel has freed this one. The guest is the floor's: its first instructions ask for a reset.
"""

from __future__ import annotations

import gc
import struct
import sys
import time

import vmlet
from vmlet import _core

_ENTRY = 0x100000
_CODE = bytes([0xB0, 0xFE, 0xE6, 0x64, 0xF4])  # mov al, 0xfe; out 0x64, al; hlt


def image() -> bytes:
    """An ELF file with the code and PVH's note (XEN_ELFNOTE_PHYS32_ENTRY)."""
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", _ENTRY)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _ENTRY, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    at = 64 + 2 * 56
    load = struct.pack("<IIQQQQQQ", 1, 5, at, _ENTRY, _ENTRY, len(_CODE), len(_CODE), 4096)
    at += len(_CODE)
    noted = struct.pack("<IIQQQQQQ", 4, 4, at, 0, 0, len(note), len(note), 4)
    return ident + header + load + noted + _CODE + note


def one(kernel: bytes, *, in_place: bool) -> tuple[int, int]:
    """Nanoseconds to the guest's first effect, and those of the end."""
    start = time.monotonic_ns()
    vm = vmlet.VM(kernel=kernel, memory="256M", engine="kvm")
    vm.start()
    event = vm.wait(timeout=10)
    made = time.monotonic_ns()
    if event is None or event.kind != "reset":
        raise SystemExit(f"the guest ended by {event}")
    closing = time.monotonic_ns()
    vm.close()
    if in_place:
        del vm
        _core.drain()
    closed = time.monotonic_ns()
    if not in_place:
        del vm
        _core.drain()
    return made - start, closed - closing


def main() -> None:
    """Serve the lines of stdin."""
    kernel = image()
    # A collection in the middle of a VM would be counted as the VM's.
    gc.disable()
    for line in sys.stdin:
        mode, count = line.split()
        for _ in range(int(count)):
            create, close = one(kernel, in_place=mode == "sync")
            print(create, close)
        sys.stdout.flush()
        gc.collect()


main()
