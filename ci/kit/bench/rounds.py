"""Interleaved rounds: subject, reference and reference again, in a different order each time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from .result import Row
from .statistics import Verdict, low, ratio, verdict
from .worker import Worker

Samples = Mapping[str, Sequence[float]]
"""Costs by row."""
Batch = Callable[[], Samples]
"""Measures one party once."""


_NEWS_SECONDS = 10  # between two lines on how far it is


@dataclass(frozen=True)
class Plan:
    """A row to be measured."""

    row: str
    unit: str
    reference_name: str
    limit: float | None
    """The highest ratio that meets the row; without one a row is decided at once."""


@dataclass
class _Costs:
    subject: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    control: list[float] = field(default_factory=list)


def measure(
    plans: Sequence[Plan],
    subject: Batch,
    reference: Batch,
    *,
    least: int,
    cap: int,
    told: Callable[[str], None],
    judged: Callable[[list[Row]], list[Row]] = list,
) -> list[Row]:
    """Run at least `least` rounds, and more up to `cap` while a row's control is off.

    `judged` makes of the rows those that have to be decided.
    """
    costs = {plan.row: _Costs() for plan in plans}
    done = 0
    news = time.monotonic() + _NEWS_SECONDS
    while True:
        _round(costs, subject, reference, done)
        done += 1
        rows = [_row(plan, costs[plan.row], done) for plan in plans] if done >= least else []
        ends = judged(rows) if rows else []
        undecided = [row.row for row in ends if row.verdict is Verdict.UNDECIDED]
        if rows and (not undecided or done >= cap):
            return rows
        if undecided and done % least == 0:
            told(f"{done} rounds, at most {cap}: undecided: {', '.join(undecided)}")
        elif time.monotonic() >= news:
            told(f"{done} rounds of {least if done < least else cap}")
            news = time.monotonic() + _NEWS_SECONDS


def renewing(worker: Worker, batch: Batch, turns: int) -> Batch:
    """A batch whose process, warm already, is started anew after so many and warmed up by one more.

    Where a process has its code and its pages changes a short cost by several percent.
    """
    done = count()

    def turn() -> Samples:
        number = next(done)
        if number and number % turns == 0:
            worker.start_again()
            batch()
        return batch()

    return turn


def fitting(batch: Callable[[int], object], most: int, seconds: float) -> int:
    """How many of something, at most `most`, a batch may hold to take about `seconds`."""
    batch(1)  # the first one pays for what stays
    begin = time.monotonic()
    batch(1)
    took = time.monotonic() - begin
    return max(1, min(most, int(seconds / took))) if took > 0 else most


def _round(costs: dict[str, _Costs], subject: Batch, reference: Batch, number: int) -> None:
    """One batch of each party; who comes first changes, so that nobody always pays for it."""
    parties = [("subject", subject), ("reference", reference), ("control", reference)]
    turn = number % len(parties)
    for party, batch in [*parties[turn:], *parties[:turn]]:
        for row, values in batch().items():
            getattr(costs[row], party).extend(values)


def _row(plan: Plan, costs: _Costs, rounds: int) -> Row:
    every = [*costs.reference, *costs.control]
    cost, control = ratio(costs.subject, every), ratio(costs.control, costs.reference)
    return Row(
        row=plan.row,
        unit=plan.unit,
        vmlet=low(costs.subject),
        reference=low(every),
        reference_name=plan.reference_name,
        ratio=cost,
        control=control,
        rounds=rounds,
        limit=plan.limit,
        verdict=verdict(cost, control, plan.limit),
    )
