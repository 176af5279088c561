"""Seven integer kernels in a Linux guest under KVM, against the same program on the same processor.

The row `native` is the geometric mean over the seven, whose own rows follow, and that of a program
that walks page tables: each of its accesses misses the TLB, and a guest's walk is one through both
stages. The program times itself: a guest's clock is the processor's.

What a guest that computes exits for are the host's timer ticks, its own, and what it sets its timer
by after each. The last it is spared: its tick comes from a timer that goes on by itself. How the
two ticks fall to one another differs from boot to boot, so that several boots are measured.
"""

from __future__ import annotations

from collections.abc import Callable

from . import guests
from .kernels import KERNELS, PAGE_WALKS, Comparison, Side
from .result import Row
from .worker import Worker

_COMPARISON = Comparison(
    row="native",
    reference="the processor that runs the VMM",
    limit=1.15,
    least=12,
    cap=36,
    kernels=(*KERNELS, PAGE_WALKS),
    turns=3,
)
_PERIODIC_TICK = " nohz=off highres=off lapic=notscdeadline"

ENGINE = "kvm"
NEEDS = "kvm-linux"

prepare, needed = guests.prepare, guests.needed


def run(told: Callable[[str], None]) -> list[Row]:
    """Measure."""
    with Worker(guests.subject("kvm", _PERIODIC_TICK)) as ours, Worker(guests.native()) as native:
        sides = Side(ours, own_clock=True), Side(native, own_clock=True)
        return _COMPARISON.rows(*sides, told)
