"""Low percentiles and ratios of them, and when a ratio can be believed.

Costs have a floor and noise that only adds to it, so that a low percentile says more about the code
than a mean. The minimum would say more about one lucky sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

LOW = 0.1


class Verdict(Enum):
    """What a row says about its limit."""

    MET = "met"
    NOT_MET = "not met"
    UNDECIDED = "undecided"
    """The control is off: too noisy to tell. Not met until decided."""
    NO_LIMIT = "no limit"


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie, between neighbours in proportion.

    >>> percentile([4, 1, 2, 3, 5], 0.5)
    3.0
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def low(values: Sequence[float]) -> float:
    """The low percentile that rows are made of."""
    return percentile(values, LOW)


def ratio(cost: Sequence[float], reference: Sequence[float]) -> float:
    """Cost over cost: lower is better, 1 is equal."""
    return low(cost) / low(reference)


def is_off(control: float, limit: float, ratio: float) -> bool:
    """Whether the reference against itself is off by too much to tell.

    By more than half of the limit's allowance, and of what lies between ratio and limit: a ratio
    far from its limit is told by a worse control, and a limit of 1 allows nothing by itself.

    >>> is_off(1.09, 1.2, 1.2), is_off(1.11, 1.2, 1.2), is_off(0.89, 1.2, 1.2)
    (False, True, True)
    >>> is_off(1.03, 1.0, 0.99), is_off(1.03, 1.0, 0.9)
    (True, False)
    """
    return abs(control - 1) > max(abs(limit - 1), abs(ratio - limit)) / 2


def verdict(ratio: float, control: float, limit: float | None) -> Verdict:
    """What a row says about its limit."""
    if limit is None:
        return Verdict.NO_LIMIT
    if is_off(control, limit, ratio):
        return Verdict.UNDECIDED
    return Verdict.MET if ratio <= limit else Verdict.NOT_MET
