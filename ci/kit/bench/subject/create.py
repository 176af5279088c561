"""The subject of the benchmark "create": VMs made, run and closed through the public API.

Reads lines "MODE COUNT"; for each makes, runs and closes COUNT VMs and prints one line
"CREATE CLOSE" a VM, in nanoseconds of CLOCK_MONOTONIC. MODE "sync": CLOSE lasts until the kernel
has freed everything. MODE "handoff": CLOSE is what the caller waits for; the next VM begins when
the kernel has freed this one. The guest is the floor's: its first instructions ask for a reset.
"""

from __future__ import annotations

import gc
import sys
import time

from pvh import elf

import vmlet
from vmlet import _core

_CODE = bytes([0xB0, 0xFE, 0xE6, 0x64, 0xF4])  # mov al, 0xfe; out 0x64, al; hlt


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
    vm.close(wait=in_place)
    closed = time.monotonic_ns()
    del vm
    _core.drain()
    return made - start, closed - closing


def main() -> None:
    """Serve the lines of stdin."""
    kernel = elf(_CODE)
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
