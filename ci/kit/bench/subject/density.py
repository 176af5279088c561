"""The subject of the benchmark "density": many VMs alive in one process.

`density.py GUEST`, the flat code of `echo.s`, reads lines "COUNT SECONDS" and prints for each one
line of whole numbers: bytes of this process' PSS that COUNT idle VMs add beyond guest memory; bytes
of guest memory that they have touched; bytes by which MemAvailable fell; nanoseconds of processor
time that this process took in SECONDS in which nothing happened; nanoseconds to make the VMs, and
to have each answer again; and what was left of them when all were closed: descriptors, threads,
mappings.
"""

from __future__ import annotations

import gc
import re
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pvh import elf

import vmlet
from vmlet import _core

_PROC = Path("/proc/self")
_MEMORY = "256M"
_LIMIT = 600.0


def mappings() -> Iterator[tuple[int, int]]:
    """First address and PSS, in bytes, of every mapping."""
    start = 0
    for line in (_PROC / "smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-[0-9a-f]+ ", line):
            start = int(found[1], 16)
        elif line.startswith("Pss:"):
            yield start, int(line.split()[1]) << 10


def available() -> int:
    """The kernel's estimate of what programs can still have."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    if found is None:
        raise SystemExit("no MemAvailable in /proc/meminfo")
    return int(found[1]) << 10


def holdings() -> tuple[int, int, int]:
    """Descriptors, threads and mappings of this process."""
    descriptors = len(list((_PROC / "fd").iterdir()))
    threads = len(list((_PROC / "task").iterdir()))
    return descriptors, threads, (_PROC / "maps").read_text().count("\n")


def settled() -> tuple[int, int, int]:
    """Holdings when the kernel is through with what was dropped."""
    gc.collect()
    _core.drain()
    time.sleep(0.5)  # a thread that has ended is seen for a moment
    return holdings()


def ready(kernel: bytes) -> vmlet.VM:
    """A VM whose guest sleeps until it is sent something."""
    vm = vmlet.VM(kernel=kernel, memory=_MEMORY, engine="kvm")
    vm.start()
    vm.console.expect(b"r", timeout=_LIMIT)
    return vm


def answer(vm: vmlet.VM, number: int) -> None:
    """The guest runs again: it gets a byte and sends it back."""
    byte = bytes([ord("A") + number % 26])
    vm.console.write(byte)
    vm.console.expect(re.compile(re.escape(byte)), timeout=_LIMIT)


def guest_ranges(vms: list[vmlet.VM]) -> list[tuple[int, int]]:
    """Where guest memory lies in this process."""
    slots = [slot for vm in vms for slot in vm.memory.page_sizes().slots]
    return [(slot.hva, slot.hva + slot.length) for slot in slots]


def pss(vms: list[vmlet.VM]) -> tuple[int, int]:
    """Bytes of PSS: beside guest memory, and of guest memory."""
    guests = sorted(guest_ranges(vms))
    beside = within = at = 0
    for start, size in mappings():
        while at < len(guests) and guests[at][1] <= start:
            at += 1
        if at < len(guests) and guests[at][0] <= start:
            within += size
        else:
            beside += size
    return beside, within


def measure(kernel: bytes, count: int, seconds: float) -> list[int]:
    """The numbers of one line."""
    with ready(kernel) as first:  # what the first VM of a process makes stays
        answer(first, 0)
    before = settled()
    base, free = pss([])[0], available()
    begun = time.monotonic_ns()
    vms = [ready(kernel) for _ in range(count)]
    made = time.monotonic_ns() - begun
    beside, within = pss(vms)
    taken = free - available()
    spent = time.process_time_ns()
    time.sleep(seconds)
    idle = time.process_time_ns() - spent
    begun = time.monotonic_ns()
    for number, vm in enumerate(vms):
        answer(vm, number)
    answered = time.monotonic_ns() - begun
    while vms:
        vms.pop().close()
    left = [max(0, now - then) for now, then in zip(settled(), before, strict=True)]
    return [beside - base, within, taken, idle, made, answered, *left]


def main() -> None:
    """Serve the lines of stdin."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    kernel = elf(Path(sys.argv[1]).read_bytes())
    for line in sys.stdin:
        count, seconds = line.split()
        print(*measure(kernel, int(count), float(seconds)), flush=True)


if __name__ == "__main__":
    main()
