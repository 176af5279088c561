"""Boots of a Linux guest under KVM, against QEMU's microvm on the same KVM.

To the first act of init, a program of a few kilobytes: from the start of a Python process (row
`process`) and from `VM(...)` in one that runs (row `vm`), against the start of QEMU's process. Same
kernel image, initial RAM file system and command line; what QEMU need not emulate is switched off.
vmlet keeps unpacked kernels: what the first boot of one takes is told beside the rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

from labkit import packages

from ..paths import LOGS, TARGET
from ..process import Words, must
from ..tools import tool
from . import guests
from .result import Row
from .rounds import Plan, Samples, measure
from .statistics import low
from .worker import Worker

_SUBJECT = Path(__file__).resolve().parent / "subject"
_INIT = TARGET / "bench" / "init"
_INITRD = TARGET / "bench" / "init.cpio"
_FREESTANDING = (
    *("-O2", "-Wall", "-Wextra", "-Werror", "-static", "-nostdlib", "-ffreestanding"),
    *("-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-Wl,--build-id=none"),
)
_MOST_BYTES = 64 << 10
_RELEASE = "6.1"
_CMDLINE = (
    "console=ttyS0 quiet panic=-1 reboot=t i8042.noaux i8042.nokbd tsc=reliable noreplace-smp "
    "cryptomgr.notests=1 mitigations=off no_timer_check"
)
_QEMU = (
    *("-M", "microvm,pit=off,pic=off,rtc=on,kernel-irqchip=split,auto-kernel-cmdline=off"),
    *("-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", "256"),
    *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"),
)
_LEAST, _CAP = 8, 24
#: Boots of a kernel that is not kept, which are told and have no limit.
_FIRST = 3
_LIMITS = {"process": 0.75, "vm": 0.65}

ENGINE = "kvm"
NEEDS = "kvm-linux"
PLANS = tuple(Plan(row, "ms", "QEMU microvm", limit) for row, limit in _LIMITS.items())


def prepare() -> None:
    """Have QEMU and the kernel, compile and pack init."""
    guests.index()
    compiler: Words = ["gcc", *_FREESTANDING, "-o", _INIT, _SUBJECT / "init.c"]
    must(compiler, "compiling init", LOGS / "bench-init.log")
    pack: Words = [tool("python"), "-B", _SUBJECT / "initramfs.py", _INITRD, _INIT]
    must(pack, "packing the initramfs", LOGS / "bench-initramfs.log")
    size = _INITRD.stat().st_size
    if size >= _MOST_BYTES:
        raise SystemExit(f"the initramfs has {size} bytes, and is to have less than {_MOST_BYTES}")


def needed() -> list[Path]:
    """What `prepare` makes."""
    return [_INITRD, *guests.needed()[2:]]


class _Side:
    """One worker for all sides, and what it tells beside times."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.inside: dict[str, list[float]] = defaultdict(list)
        # Which comes first takes turns too: it pays for what QEMU's end has left to do.
        self._orders = cycle((tuple(_LIMITS), tuple(_LIMITS)[::-1]))

    def boot(self, side: str) -> float:
        ((took, guest, kernel),) = self.worker.ask(side, 1)
        self.inside[f"{side}, its guest"].append(guest / 1e6)
        self.inside[f"{side}, its guest's kernel"].append(kernel / 1e6)
        return took / 1e6

    def ours(self) -> Samples:
        return {row: [self.boot(row)] for row in next(self._orders)}

    def qemu(self) -> Samples:
        took = self.boot("qemu")
        return {row: [took] for row in _LIMITS}


def run(told: Callable[[str], None]) -> list[Row]:
    """Measure."""
    told(f"{packages.QEMU} {' '.join(_QEMU)} -append '{_CMDLINE}'")
    program: Words = [tool("python"), "-B", _SUBJECT / "boot.py"]
    images: Words = [guests.kernel(_RELEASE), _INITRD, _CMDLINE]
    with Worker([*program, *images, "--", packages.QEMU, *_QEMU]) as worker:
        side = _Side(worker)
        side.ours(), side.qemu()  # the files come into the host's cache, the kernel into vmlet's
        first = [side.boot("first") for _ in range(_FIRST)]
        side.inside.clear()
        rows = measure(PLANS, side.ours, side.qemu, least=_LEAST, cap=_CAP, told=told)
    told(f"vm, of a kernel that is unpacked first: {low(first):.0f} ms")
    for what, times in side.inside.items():
        if any(times):
            told(f"{what}: {low(times):.0f} ms")
    return rows
