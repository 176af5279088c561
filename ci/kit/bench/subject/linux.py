"""The subject of benchmarks in Linux guests, through the public API.

`linux.py [--cpus N] [--on PROCESSOR] ENGINE INITRD CMDLINE KERNEL...` serves lines of stdin. "boot
N" boots the Nth kernel and prints nanoseconds of CLOCK_MONOTONIC from "Linux version" on the
console to init's first output. "run N" has init run its Nth kernel (`kernels.rs`), in a guest of
the first Linux kernel that goes on until the end, and prints nanoseconds, the result and
nanoseconds by the guest's clock, which leave out what init reads and writes; between two runs it is
paused. "count-boot N" and "count-run N" print the instructions of the same instead, in a guest
whose clock counts them.

With --on, the guest's last vCPU and nothing else of this process is on that processor.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path
from typing import Literal, cast

import vmlet

_LIMIT = 600.0

Clock = Literal["realtime", "icount"]
Engine = Literal["kvm", "soft"]


class Guest:
    """A guest with its initial RAM file system."""

    def __init__(self, asked: argparse.Namespace, number: int, clock: Clock) -> None:
        """Boot it, as far as init's first output."""
        self.vm = vmlet.VM(
            kernel=asked.kernels[number],
            initramfs=asked.initrd,
            memory="256M",
            cpus=asked.cpus,
            cmdline=asked.cmdline,
            engine=cast(Engine, asked.engine),
            clock=clock,
        )
        self.vm.start()
        self.vm.console.expect("Linux version", timeout=_LIMIT)
        begun = time.monotonic_ns()
        self.vm.console.expect("=ready", timeout=_LIMIT)
        self.phase = time.monotonic_ns() - begun
        if asked.on is not None:
            os.sched_setaffinity(thread(f"vmlet-vcpu{asked.cpus - 1}"), {asked.on})
        self.vm.pause()

    def run(self, number: int) -> tuple[int, int, int]:
        """One kernel: nanoseconds, result, and nanoseconds by the guest's clock."""
        answer = re.compile(rf"={number} ([0-9a-f]{{16}}) (\d+)\r?\n".encode())
        self.vm.resume()
        begun = time.monotonic_ns()
        self.vm.console.write(f"{number}\n")
        found = self.vm.console.expect(answer, timeout=_LIMIT)
        took = time.monotonic_ns() - begun
        self.vm.pause()  # a guest with nothing to do still ticks, which the others would pay for
        return took, int(found[1], 16), int(found[2])


def thread(name: str) -> int:
    """The thread of this process with that name."""
    tasks = Path("/proc/self/task").iterdir()
    return next(int(task.name) for task in tasks if (task / "comm").read_text().strip() == name)


def counted_boot(asked: argparse.Namespace, number: int) -> int:
    """Instructions of a whole boot."""
    guest = Guest(asked, number, "icount")
    count = guest.vm.instructions
    guest.vm.close()
    return count


def main() -> None:
    """Serve the lines of stdin."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--on", type=int)
    for name in ("engine", "initrd", "cmdline"):
        parser.add_argument(name)
    parser.add_argument("kernels", nargs="+")
    asked = parser.parse_args()
    others = os.sched_getaffinity(0) - {asked.on}
    if others:
        os.sched_setaffinity(0, others)
    lasting: dict[Clock, Guest] = {}
    for line in sys.stdin:
        action, word = line.split()
        number = int(word)
        if action == "boot":
            guest = Guest(asked, number, "realtime")
            guest.vm.close()
            print(guest.phase, flush=True)
        elif action == "count-boot":
            print(counted_boot(asked, number), flush=True)
        else:
            clock: Clock = "icount" if action == "count-run" else "realtime"
            guest = lasting.get(clock) or Guest(asked, 0, clock)
            lasting[clock] = guest
            before = guest.vm.instructions if action == "count-run" else 0
            answer = guest.run(number)
            counted = action == "count-run"
            print(*([guest.vm.instructions - before] if counted else answer), flush=True)


if __name__ == "__main__":
    main()
