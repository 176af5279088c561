"""All sides of the benchmark "callback": guests that access a device of Python or of Rust.

Reads lines "KIND COUNT"; for each has a guest make COUNT loads or stores and prints nanoseconds.
Those of CLOCK_MONOTONIC from `start` to the guest's end:

* "read-rust", "read-python": loads of a register, the I/O APIC's index or one of an `MmioDevice`;
* "write-rust", "write-posted": stores to it, posted where the device is Python's.

Those that Python took for COUNT stores, as the device's `stats` have them, the exit not included:

* "python-each": a call of `write` for each, while its vCPU waits;
* "python-loop": posted, and a loop over the batch;
* "python-array": posted, and the batch summed as one array.
"""

from __future__ import annotations

import struct
import sys
import time

from pvh import elf

import vmlet

_IOAPIC, _OURS = 0xFEC0_0000, 0xD000_0000
_READ = bytes([0x8B, 0x03, 0x49, 0x75, 0xFB])  # mov eax, [ebx]; dec ecx; jnz
_WRITE = bytes([0x89, 0x0B, 0x49, 0x75, 0xFB])  # mov [ebx], ecx; dec ecx; jnz
_RESET = bytes([0xB0, 0xFE, 0xE6, 0x64, 0xF4])  # mov al, 0xfe; out 0x64, al; hlt


class Each(vmlet.MmioDevice):
    """A register to be read, and a sum of what is written, write by write."""

    total = 0

    def read(self, offset: int, size: int) -> int:
        """The register."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """One write."""
        self.total += value


class Loop(Each):
    """The same, by a loop over a batch."""

    def writes(self, batch: vmlet.Batch) -> None:
        """Many writes."""
        for _, _, value in batch:
            self.total += value


class Array(Each):
    """The same, by numpy."""

    def writes(self, batch: vmlet.Batch) -> None:
        """Many writes."""
        self.total += int(batch.array()["value"].sum())


_SIDES = {"python-each": Each, "python-loop": Loop, "python-array": Array}


def one(kind: str, count: int) -> int:
    """Nanoseconds of `count` loads or stores."""
    loads = kind.startswith("read")
    at = _IOAPIC if kind.endswith("rust") else _OURS
    code = b"\xb9" + struct.pack("<I", count) + b"\xbb" + struct.pack("<I", at)
    code += (_READ if loads else _WRITE) + _RESET
    posted = kind in ("write-posted", "python-loop", "python-array")
    # Batches as large as there is room for.
    delay = 10.0 if kind in _SIDES else 0.001
    device = _SIDES.get(kind, Each)(at=_OURS, size=0x1000, posted=posted, delay=delay)
    with vmlet.VM(kernel=elf(code), engine="kvm", devices=[device]) as vm:
        start = time.monotonic_ns()
        vm.start()
        # Not `wait`, which has posted writes delivered.
        while vm.state == "running":
            next(vm.events(timeout=600))
        took = time.monotonic_ns() - start
        exits = vm.exits()
        served = sum((exits.memory_reads if loads else exits.memory_writes).values())
        if served != count:
            raise SystemExit(f"{served} of {count} accesses reached their device")
        vm.wait(timeout=600)
        if not loads and at == _OURS and device.total != count * (count + 1) // 2:
            raise SystemExit(f"{kind}: the sum is {device.total}")
        stats = device.stats()
    return stats["call_ns"] + stats["batch_ns"] if kind in _SIDES else took


def main() -> None:
    """Serve the lines of stdin."""
    for line in sys.stdin:
        kind, count = line.split()
        print(one(kind, int(count)), flush=True)


if __name__ == "__main__":
    main()
