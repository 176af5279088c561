"""The subject of the benchmark "exit": a guest that reads a device again and again.

Reads lines "KIND COUNT" with the kinds "pio", the serial port's scratch register, and "mmio", the
index register of the I/O APIC; for each has a guest read COUNT times and prints the nanoseconds of
CLOCK_MONOTONIC from `start` to the guest's end. Both devices are Rust's.
"""

from __future__ import annotations

import struct
import sys
import time

from pvh import ENTRY, elf

import vmlet

# mov ebx, the I/O APIC; mov edx, the scratch register
_SETUP = bytes([0xBB, 0, 0, 0xC0, 0xFE, 0xBA, 0xFF, 3, 0, 0])
_LOOPS = {
    "pio": bytes([0xEC, 0x49, 0x75, 0xFC]),  # in al, dx; dec ecx; jnz
    "mmio": bytes([0x8B, 0x03, 0x49, 0x75, 0xFB]),  # mov eax, [ebx]; dec ecx; jnz
}
_RESET = bytes([0xB0, 0xFE, 0xE6, 0x64, 0xF4])  # mov al, 0xfe; out 0x64, al; hlt


def one(kind: str, count: int) -> int:
    """Nanoseconds of `count` reads."""
    code = b"\xb9" + struct.pack("<I", count) + _SETUP + _LOOPS[kind] + _RESET
    with vmlet.VM(kernel=elf(code, ENTRY), memory="256M", engine="kvm") as vm:
        start = time.monotonic_ns()
        vm.start()
        event = vm.wait(timeout=600)
        took = time.monotonic_ns() - start
        if event.kind != "reset":
            raise SystemExit(f"the guest ended by {event}")
        exits = vm.exits()
        served = exits.port_reads.get(0x3FF, 0) + sum(exits.memory_reads.values())
        if served != count:
            raise SystemExit(f"{served} of {count} reads reached their device")
    return took


def main() -> None:
    """Serve the lines of stdin."""
    for line in sys.stdin:
        kind, count = line.split()
        print(one(kind, int(count)), flush=True)


if __name__ == "__main__":
    main()
