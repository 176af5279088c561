"""Seven integer kernels on the software CPU, against QEMU's translator (TCG) and the host itself.

The program (`subject/kernels.rs`) is the same file on all sides, init in a Linux guest on two. Each
kernel ran once before it is measured. Rows `tcg` and `native` are geometric means over the kernels,
whose own rows follow. All sides have to come to the same results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import exp, log

from . import guests
from .result import Row
from .rounds import Plan, Samples, measure
from .statistics import verdict
from .worker import Worker

_KERNELS = ("lz-compress", "lz-decompress", "quicksort", "tree", "crc32", "arx", "strings")
_ROUNDS = 10
_LIMITS = {"tcg": 3.0, "native": 7.0}
_NAMES = {"tcg": "QEMU TCG", "native": "the host's processor"}

ENGINE = "soft"
NEEDS_KVM = False

prepare = guests.prepare


@dataclass
class _Side:
    """A worker and what it found beside times."""

    worker: Worker
    against: str = ""
    results: dict[str, int] = field(default_factory=dict)

    def batch(self) -> Samples:
        """Every kernel once."""
        samples = {}
        for number, kernel in enumerate(_KERNELS):
            ((took, result),) = self.worker.ask(f"run {number}", 1)
            samples[f"{self.against}:{kernel}"] = [took / 1e6]
            if self.results.setdefault(kernel, result) != result:
                raise SystemExit(f"{kernel} came to {result:x} and {self.results[kernel]:x}")
        return samples


def run(told: Callable[[str], None]) -> list[Row]:
    """Measure."""
    told(guests.qemu())
    commands = guests.subject(), guests.tcg(), guests.native()
    with Worker(commands[0]) as ours, Worker(commands[1]) as tcg, Worker(commands[2]) as native:
        subject = _Side(ours)
        sides = {"tcg": _Side(tcg), "native": _Side(native)}
        rows = []
        for name, side in sides.items():
            rows += _against(name, subject, side, told)
        for number, kernel in enumerate(_KERNELS):
            ((count,),) = ours.ask(f"count-run {number}", 1)
            cost = next(row.vmlet for row in rows if row.row == f"tcg:{kernel}")
            told(f"{kernel}: {count} instructions, {count / cost / 1000:.0f} MIPS")
    return rows


def _against(name: str, subject: _Side, other: _Side, told: Callable[[str], None]) -> list[Row]:
    subject.against = other.against = name
    subject.batch(), other.batch()
    if subject.results != other.results:
        raise SystemExit(f"results differ: {subject.results}, {name}: {other.results}")
    plans = [Plan(f"{name}:{kernel}", "ms", _NAMES[name], None) for kernel in _KERNELS]
    rows = measure(plans, subject.batch, other.batch, least=_ROUNDS, cap=_ROUNDS, told=told)
    return [_mean(name, rows), *rows]


def _mean(name: str, rows: Sequence[Row]) -> Row:
    cost = _geometric([row.ratio for row in rows])
    control = _geometric([row.control for row in rows])
    return Row(
        row=name,
        unit="ms",
        vmlet=_geometric([row.vmlet for row in rows]),
        reference=_geometric([row.reference for row in rows]),
        reference_name=_NAMES[name],
        ratio=cost,
        control=control,
        rounds=rows[0].rounds,
        limit=_LIMITS[name],
        verdict=verdict(cost, control, _LIMITS[name]),
    )


def _geometric(values: Sequence[float]) -> float:
    """The geometric mean.

    >>> _geometric([2, 8])
    4.0
    """
    return exp(sum(log(value) for value in values) / len(values))
