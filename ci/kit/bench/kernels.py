"""The program of `subject/kernels.rs` on two sides: each kernel's row, and their geometric mean.

The program is the same file on all sides. Each kernel ran once before it is measured, and all sides
have to come to the same results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import exp, log

from .result import Row
from .rounds import Batch, Plan, Samples, measure, renewing
from .statistics import verdict
from .worker import Worker

KERNELS = ("lz-compress", "lz-decompress", "quicksort", "tree", "crc32", "arx", "strings")
PAGE_WALKS = "page-walks"
"""The one after the seven: it touches one word a page, in an order that no TLB follows."""
_NUMBERS = {kernel: number for number, kernel in enumerate((*KERNELS, PAGE_WALKS))}


@dataclass
class Side:
    """A worker and what it found beside times."""

    worker: Worker
    own_clock: bool = False
    """Takes the program's own times: what it reads and writes on a console is left out."""
    results: dict[str, int] = field(default_factory=dict)

    def batch(self, kernels: Sequence[str]) -> Samples:
        """Every kernel once."""
        samples = {}
        for kernel in kernels:
            ((took, result, own),) = self.worker.ask(f"run {_NUMBERS[kernel]}", 1)
            samples[kernel] = [(own if self.own_clock else took) / 1e6]
            if self.results.setdefault(kernel, result) != result:
                raise SystemExit(f"{kernel} came to {result:x} and {self.results[kernel]:x}")
        return samples

    def instructions(self, kernel: str) -> int:
        """How many instructions a kernel takes, from a side that counts them."""
        ((count,),) = self.worker.ask(f"count-run {_NUMBERS[kernel]}", 1)
        return count


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how long at most."""

    row: str
    reference: str
    limit: float | None
    least: int
    cap: int
    kernels: Sequence[str] = KERNELS
    turns: int | None = None
    """Batches after which a side is started anew."""

    def rows(self, subject: Side, other: Side, told: Callable[[str], None]) -> list[Row]:
        """The mean's row, then those of the kernels."""
        subject.batch(self.kernels), other.batch(self.kernels)
        if subject.results != other.results:
            raise SystemExit(f"results differ: {subject.results}, {self.row}: {other.results}")
        rows = measure(
            [Plan(kernel, "ms", self.reference, None) for kernel in self.kernels],
            self._batch(subject),
            self._batch(other),
            least=self.least,
            cap=self.cap,
            told=told,
            judged=lambda rows: [self._mean(rows)],
        )
        named = [replace(row, row=f"{self.row}:{row.row}") for row in rows]
        return [self._mean(rows), *named]

    def _batch(self, side: Side) -> Batch:
        def batch() -> Samples:
            return side.batch(self.kernels)

        return renewing(side.worker, batch, self.turns) if self.turns else batch

    def _mean(self, every: Sequence[Row]) -> Row:
        rows = [row for row in every if row.row in KERNELS]
        cost = geometric([row.ratio for row in rows])
        control = geometric([row.control for row in rows])
        return Row(
            row=self.row,
            unit="ms",
            vmlet=geometric([row.vmlet for row in rows]),
            reference=geometric([row.reference for row in rows]),
            reference_name=self.reference,
            ratio=cost,
            control=control,
            rounds=rows[0].rounds,
            limit=self.limit,
            verdict=verdict(cost, control, self.limit),
        )


def geometric(values: Sequence[float]) -> float:
    """The geometric mean.

    >>> geometric([2, 8])
    4.0
    """
    return exp(sum(log(value) for value in values) / len(values))
