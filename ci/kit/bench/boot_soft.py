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
NEEDS = ""
PLANS = tuple(Plan(release, "ms", "QEMU TCG", limit) for release, limit in _LIMITS.items())

prepare, needed = guests.prepare, guests.needed


def run(told: Callable[[str], None]) -> list[Row]:
    """Measure."""
    told(guests.qemu())
    with Worker(guests.subject("soft")) as ours, Worker(guests.tcg()) as reference:
        _batch(ours), _batch(reference)  # the files come into the host's cache
        rows = measure(
            PLANS,
            lambda: _batch(ours),
            lambda: _batch(reference),
            least=_LEAST,
            cap=_CAP,
            told=told,
        )
        for number, row in enumerate(rows):
            ((count,),) = ours.ask(f"count-boot {number}", 1)
            told(f"{row.row}: {count} instructions a boot, {count / row.vmlet / 1000:.0f} MIPS")
    return rows


def _batch(worker: Worker) -> Samples:
    samples = {}
    for number, release in enumerate(guests.RELEASES):
        ((phase,),) = worker.ask(f"boot {number}", 1)
        samples[release] = [phase / 1e6]
    return samples
