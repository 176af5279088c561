"""What a device written in Python costs a guest, against the same device in Rust.

* `read-extra`: microseconds that a load takes longer where Python answers it, against the one that
  it may.
* `posted-vcpu`: a store that is posted, against the same one to a Rust device: what the vCPU sees.
* `posted-python`: what Python takes for a posted store, by a loop over its batch, against what it
  takes for one that its vCPU waits for. The exit is in neither.
* `posted-array`: the same, by numpy's sum over the batch as one array.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from ..process import Words
from ..tools import tool
from .result import Row
from .rounds import Plan, Samples, fitting, measure
from .statistics import Verdict
from .worker import Worker

_HERE = Path(__file__).resolve().parent
_BATCH, _BATCH_SECONDS, _PIECE = 20_000, 2.0, 1000
_LEAST, _CAP = 20, 120
# What an exit costs drifts within a second by more than Python costs: short batches, many of them.
_EXTRA_BATCH, _EXTRA_LEAST, _EXTRA_CAP = 1000, 500, 1000
_ALLOWANCE = 1.0  # microseconds of read-extra
_SUBJECT = {
    "posted-vcpu": "write-posted",
    "posted-python": "python-loop",
    "posted-array": "python-array",
}
_REFERENCE = {
    "posted-vcpu": "write-rust",
    "posted-python": "python-each",
    "posted-array": "python-each",
}

ENGINE = "kvm"
NEEDS = "kvm"
_EXTRA = Plan("read-extra", "us", "the microsecond that it may take longer than in Rust", None)
_POSTED = (
    Plan("posted-vcpu", "us", "the same store to a Rust device", 1.05),
    Plan("posted-python", "us", "a store that waits for Python", 0.6),
    Plan("posted-array", "us", "a store that waits for Python", 0.1),
)
PLANS = (_EXTRA, *_POSTED)


def prepare() -> None:
    """Nothing has to be made."""


def needed() -> list[Path]:
    """Nothing."""
    return []


def run(told: Callable[[str], None]) -> list[Row]:
    """Measure."""
    side: Words = [tool("python"), "-B", _HERE / "subject" / "callback.py"]
    with Worker(side) as ours, Worker(side) as reference:
        rows = measure(
            [_EXTRA],
            lambda: _batch(ours, _EXTRA_BATCH, {_EXTRA.row: "read-python"}),
            lambda: _batch(reference, _EXTRA_BATCH, {_EXTRA.row: "read-rust"}),
            least=_EXTRA_LEAST,
            cap=_EXTRA_CAP,
            told=told,
        )
        return [*map(extra, rows), *_posted(ours, reference, told)]


def _posted(ours: Worker, reference: Worker, told: Callable[[str], None]) -> list[Row]:
    one = {"": "write-rust"}
    pieces = fitting(lambda n: _batch(ours, n * _PIECE, one), _BATCH // _PIECE, _BATCH_SECONDS)
    size = pieces * _PIECE
    _batch(ours, _PIECE, _SUBJECT)  # numpy is imported once
    told(f"batches of {size} accesses, at least {_LEAST} rounds")
    return measure(
        _POSTED,
        lambda: _batch(ours, size, _SUBJECT),
        lambda: _batch(reference, size, _REFERENCE),
        least=_LEAST,
        cap=_CAP,
        told=told,
    )


def extra(row: Row) -> Row:
    """What the subject costs more than the reference, against what it may; so is the control."""
    more, off = row.vmlet - row.reference, (row.control - 1) * row.reference
    met = Verdict.MET if more <= _ALLOWANCE else Verdict.NOT_MET
    return replace(
        row,
        vmlet=more,
        reference=_ALLOWANCE,
        ratio=more / _ALLOWANCE,
        control=1 + off / _ALLOWANCE,
        limit=1.0,
        verdict=Verdict.UNDECIDED if abs(off) > _ALLOWANCE / 2 else met,
    )


def _batch(worker: Worker, size: int, kinds: Mapping[str, str]) -> Samples:
    samples: dict[str, list[float]] = {}
    asked: dict[str, float] = {}
    for row, kind in kinds.items():
        if kind not in asked:
            ((took,),) = worker.ask(f"{kind} {size}", 1)
            asked[kind] = took / 1000 / size
        samples[row] = [asked[kind]]
    return samples
