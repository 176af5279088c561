"""Seven integer kernels in a Linux guest under KVM, against the same program on the same processor.

The row `native` is the geometric mean over the seven, whose own rows follow, and that of a program
that walks page tables: each of its accesses misses the TLB, and a guest's walk is one through both
stages. The program times itself: a guest's clock is the processor's.

What a guest that computes exits for are timer ticks, the host's and its own. `native` is without
both, as guests are run whose time counts: the program has the second of two vCPUs to itself, that
vCPU has a processor to itself, and neither kernel ticks where one task is alone (`nohz_full`). The
rows `ticks` are a guest with one vCPU and no such options on a processor that ticks.

Either side has the same processor; whoever is not measured waits, the guest paused.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..process import Words
from . import guests
from .kernels import KERNELS, PAGE_WALKS, Comparison, Side
from .result import Row
from .worker import Worker

_REFERENCE = "the processor that runs the VMM"
_ALONE = Comparison(
    row="native",
    reference=_REFERENCE,
    limit=1.15,
    least=12,
    cap=24,
    kernels=(*KERNELS, PAGE_WALKS),
    turns=3,
)
_TICKS = Comparison(row="ticks", reference=_REFERENCE, limit=None, least=6, cap=6, turns=3)
_NO_TICKS = " nohz_full=1 -- 1"

ENGINE = "kvm"
NEEDS = "kvm-linux"
LAB_KERNEL = "nohz_full=2"

prepare, needed = guests.prepare, guests.needed


def run(told: Callable[[str], None]) -> list[Row]:
    """Measure."""
    *ticking, alone = sorted(os.sched_getaffinity(0))
    if _ticks(alone):
        told(f"the host ticks on processor {alone}; nohz_full={alone} among its options ends that")
    without = guests.subject("kvm", _NO_TICKS, cpus=2, on=alone)
    rows = _rows(_ALONE, without, alone, told)
    plain = ticking[-1] if ticking else alone
    return rows + _rows(_TICKS, guests.subject("kvm", on=plain), plain, told)


def _ticks(processor: int) -> bool:
    """Whether the host's timer ticks there while a single task is at work."""
    spared = Path("/sys/devices/system/cpu/nohz_full")
    listed = spared.read_text().strip() if spared.exists() else ""
    ranges = [part.partition("-") for part in listed.split(",") if part[:1].isdigit()]
    return not any(int(first) <= processor <= int(last or first) for first, _, last in ranges)


def _rows(
    comparison: Comparison, guest: Words, processor: int, told: Callable[[str], None]
) -> list[Row]:
    with Worker(guest) as ours, Worker(guests.native(processor)) as native:
        sides = Side(ours, own_clock=True), Side(native, own_clock=True)
        return comparison.rows(*sides, told)
