"""The subject of benchmarks in Linux guests, through the public API.

`linux.py ENGINE INITRD CMDLINE KERNEL...` serves lines of stdin. "boot N" boots the Nth kernel and
prints nanoseconds of CLOCK_MONOTONIC from "Linux version" on the console to init's first output.
"run N" has init run its Nth kernel (`kernels.rs`), in a guest of the first Linux kernel that goes
on until the end, and prints nanoseconds, the result and nanoseconds by the guest's clock, which
leave out what init reads and writes. "count-boot N" and "count-run N" print the instructions of the
same instead, in a guest whose clock counts them.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from typing import Literal, cast

import vmlet

_LIMIT = 600.0

Clock = Literal["realtime", "icount"]
Engine = Literal["kvm", "soft"]


class Guest:
    """A guest with its initial RAM file system."""

    def __init__(self, files: Sequence[str], number: int, clock: Clock) -> None:
        """Boot it, as far as init's first output."""
        engine, initrd, cmdline, *kernels = files
        self.vm = vmlet.VM(
            kernel=kernels[number],
            initramfs=initrd,
            memory="256M",
            cmdline=cmdline,
            engine=cast(Engine, engine),
            clock=clock,
        )
        self.vm.start()
        self.vm.console.expect("Linux version", timeout=_LIMIT)
        begun = time.monotonic_ns()
        self.vm.console.expect("=ready", timeout=_LIMIT)
        self.phase = time.monotonic_ns() - begun

    def run(self, number: int) -> tuple[int, int, int]:
        """One kernel: nanoseconds, result, and nanoseconds by the guest's clock."""
        answer = re.compile(rf"={number} ([0-9a-f]{{16}}) (\d+)\r?\n".encode())
        begun = time.monotonic_ns()
        self.vm.console.write(f"{number}\n")
        found = self.vm.console.expect(answer, timeout=_LIMIT)
        return time.monotonic_ns() - begun, int(found[1], 16), int(found[2])


def counted_boot(files: Sequence[str], number: int) -> int:
    """Instructions of a whole boot."""
    guest = Guest(files, number, "icount")
    count = guest.vm.instructions
    guest.vm.close()
    return count


def main() -> None:
    """Serve the lines of stdin."""
    files = sys.argv[1:]
    lasting: dict[Clock, Guest] = {}
    for line in sys.stdin:
        action, word = line.split()
        number = int(word)
        if action == "boot":
            guest = Guest(files, number, "realtime")
            guest.vm.close()
            print(guest.phase, flush=True)
        elif action == "count-boot":
            print(counted_boot(files, number), flush=True)
        else:
            clock: Clock = "icount" if action == "count-run" else "realtime"
            guest = lasting.get(clock) or Guest(files, 0, clock)
            lasting[clock] = guest
            before = guest.vm.instructions if action == "count-run" else 0
            answer = guest.run(number)
            counted = action == "count-run"
            print(*([guest.vm.instructions - before] if counted else answer), flush=True)


if __name__ == "__main__":
    main()
