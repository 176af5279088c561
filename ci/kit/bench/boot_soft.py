"""Boots of Debian's kernels on the software CPU, against QEMU's translator (TCG).

Same kernel, initial RAM file system, command line and phase: from "Linux version" on the console to
the first output of init, a program of one file. The clock is the one that users get by default.
"""

from __future__ import annotations

from collections.abc import Callable

from . import guests
from .result import Row
from .rounds import Plan, Samples, measure
from .worker import Worker

_LEAST, _CAP = 10, 40
_LIMITS = {"6.1": 0.83, "6.12": 1.05}

ENGINE = "soft"
NEEDS_KVM = False
PLANS = tuple(Plan(release, "ms", "QEMU TCG", limit) for release, limit in _LIMITS.items())

prepare = guests.prepare


def run(told: Callable[[str], None]) -> list[Row]:
    """Measure."""
    told(guests.qemu())
    counts: dict[str, int] = {}
    with Worker(guests.subject()) as ours, Worker(guests.tcg()) as reference:
        _batch(ours, counts), _batch(reference, {})  # the files come into the host's cache
        rows = measure(
            PLANS,
            lambda: _batch(ours, counts),
            lambda: _batch(reference, {}),
            least=_LEAST,
            cap=_CAP,
            told=told,
        )
    for row in rows:
        if row.row in counts:
            rate = counts[row.row] / row.vmlet / 1000
            told(f"{row.row}: {counts[row.row]} instructions, {rate:.0f} MIPS")
    return rows


def _batch(worker: Worker, counts: dict[str, int]) -> Samples:
    samples = {}
    for number, release in enumerate(guests.RELEASES):
        ((phase, *count),) = worker.ask(f"boot {number}", 1)
        samples[release] = [phase / 1e6]
        if count and count[0] > 0:
            counts[release] = count[0]
    return samples
