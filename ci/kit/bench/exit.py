"""Round trips of a guest to a device, against a bare loop of KVM_RUN.

A guest reads a device again and again: the serial port's scratch register by an `in` instruction
(`pio`), the I/O APIC's index register by a load (`mmio`). The bare loop answers the same guest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..process import Words
from ..tools import tool
from .floors import compile_floor, floor
from .result import Row
from .rounds import Plan, Samples, fitting, measure, renewing
from .worker import Worker

_HERE = Path(__file__).resolve().parent
# Round trips of one party in one round: so many that starting and ending the guest count for
# little, so few that a host's faster and slower times come to all parties; or as many as a slow
# host makes in so many seconds.
_BATCH, _BATCH_SECONDS, _PIECE = 5_000, 1.0, 1000
_LEAST, _CAP = 80, 480
# Batches of one process.
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
            renewing(ours, lambda: _batch(ours, size), _TURNS),
            renewing(bare, lambda: _batch(bare, size), _TURNS),
            least=_LEAST,
            cap=_CAP,
            told=told,
        )


def _batch(worker: Worker, size: int) -> Samples:
    samples = {}
    for kind in _KINDS:
        ((took,),) = worker.ask(f"{kind} {size}", 1)
        samples[kind] = [took / 1000 / size]
    return samples
