"""The subject of the benchmarks of the software CPU: Linux guests through the public API.

`linux.py INITRD CMDLINE KERNEL...` serves lines of stdin. "boot N" boots the Nth kernel and prints
nanoseconds of CLOCK_MONOTONIC from "Linux version" on the console to init's first output and the
instructions of the whole boot, -1 where they are not counted. "run N" has init run its Nth kernel
(`kernels.rs`), in a guest of the first Linux kernel that goes on until the end, and prints
nanoseconds, the result and the instructions.
"""

from __future__ import annotations

import re
import sys
import time

import vmlet

_LIMIT = 600.0


class Guest:
    """A guest with its initial RAM file system."""

    def __init__(self, kernel: str, initrd: str, cmdline: str) -> None:
        """Boot it, as far as init's first output."""
        self._vm = vmlet.VM(
            kernel=kernel,
            initramfs=initrd,
            memory="256M",
            cmdline=cmdline,
            engine="soft",
        )
        self._vm.start()
        self._vm.console.expect("Linux version", timeout=_LIMIT)
        begun = time.monotonic_ns()
        self._vm.console.expect("=ready", timeout=_LIMIT)
        self.phase = time.monotonic_ns() - begun

    def instructions(self) -> int:
        """Instructions so far."""
        return int(getattr(self._vm, "instructions", -1))

    def run(self, number: str) -> tuple[int, int, int]:
        """One kernel: nanoseconds, result, instructions."""
        answer = re.compile(rf"={number} ([0-9a-f]{{16}})".encode())
        before, begun = self.instructions(), time.monotonic_ns()
        self._vm.console.write(f"{number}\n")
        found = self._vm.console.expect(answer, timeout=_LIMIT)
        took = time.monotonic_ns() - begun
        return took, int(found[1], 16), self.instructions() - before

    def close(self) -> None:
        """End it."""
        self._vm.close()


def main() -> None:
    """Serve the lines of stdin."""
    initrd, cmdline, *kernels = sys.argv[1:]
    lasting: Guest | None = None
    for line in sys.stdin:
        action, number = line.split()
        if action == "boot":
            guest = Guest(kernels[int(number)], initrd, cmdline)
            print(guest.phase, guest.instructions(), flush=True)
            guest.close()
            continue
        lasting = lasting or Guest(kernels[0], initrd, cmdline)
        print(*lasting.run(number), flush=True)


if __name__ == "__main__":
    main()
