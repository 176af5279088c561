"""Seven integer kernels in a Linux guest under KVM, against the same program on the same processor.

The row `native` is the geometric mean over the seven, whose own rows follow, and that of a program
that walks page tables: each of its accesses misses the TLB, and a guest's walk is one through both
stages. The program times itself: a guest's clock is the processor's.
"""

from __future__ import annotations

from collections.abc import Callable

from . import guests
from .kernels import KERNELS, PAGE_WALKS, Comparison, Side
from .result import Row
from .worker import Worker

_COMPARISON = Comparison(
    "native", "the processor that runs the VMM", 1.15, 10, 30, (*KERNELS, PAGE_WALKS)
)

ENGINE = "kvm"
NEEDS = "kvm-linux"

prepare, needed = guests.prepare, guests.needed


def run(told: Callable[[str], None]) -> list[Row]:
    """Measure."""
    with Worker(guests.subject("kvm")) as ours, Worker(guests.native()) as native:
        sides = Side(ours, own_clock=True), Side(native, own_clock=True)
        return _COMPARISON.rows(*sides, told)
