"""Round trips of a guest to a device, against a bare loop of KVM_RUN.

A guest reads a device again and again: the serial port's scratch register by an `in` instruction
(`pio`), the I/O APIC's index register by a load (`mmio`). The bare loop answers the same guest.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

from ..process import Words
from ..tools import tool
from .floors import compile_floor, floor
from .result import Row
from .rounds import Batch, Plan, Samples, fitting, measure
from .worker import Worker

_HERE = Path(__file__).resolve().parent
# Round trips of one party in one round: so many that starting and ending the guest count for
# little, so few that a host's faster and slower times come to all parties; or as many as a slow
# host makes in so many seconds.
_BATCH, _BATCH_SECONDS, _PIECE = 5_000, 1.0, 1000
_LEAST, _CAP = 80, 480
# Batches of one process: where its code and its pages lie changes a round trip by several percent.
_TURNS = 4
_LIMIT = 1.05
_KINDS = ("pio", "mmio")

ENGINE = "kvm"
NEEDS = "kvm"
PLANS = tuple(Plan(kind, "us", "a bare loop of KVM_RUN", _LIMIT) for kind in _KINDS)


def prepare() -> None:
    """Compile the floor."""
    compile_floor("exit")


def needed() -> list[Path]:
    """What `prepare` makes."""
    return [floor("exit")]


def run(told: Callable[[str], None]) -> list[Row]:
    """Measure."""
    subject: Words = [tool("python"), "-B", _HERE / "subject" / "exit.py"]
    with Worker(subject) as ours, Worker([floor("exit")]) as bare:
        pieces = fitting(lambda n: _batch(ours, n * _PIECE), _BATCH // _PIECE, _BATCH_SECONDS)
        size = pieces * _PIECE
        told(f"batches of {size} round trips, at least {_LEAST} rounds")
        return measure(
            PLANS,
            _renewing(ours, size),
            _renewing(bare, size),
            least=_LEAST,
            cap=_CAP,
            told=told,
        )


def _renewing(worker: Worker, size: int) -> Batch:
    turns = count()

    def batch() -> Samples:
        if next(turns) % _TURNS == 0:
            worker.start_again()
            _batch(worker, _PIECE)  # the first one pays for what stays
        return _batch(worker, size)

    return batch


def _batch(worker: Worker, size: int) -> Samples:
    samples = {}
    for kind in _KINDS:
        ((took,),) = worker.ask(f"{kind} {size}", 1)
        samples[kind] = [took / 1000 / size]
    return samples
