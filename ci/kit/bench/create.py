"""Making and ending VMs of one vCPU and 256 MiB, against the ioctls that they take at least.

`create`: from `VM(...)` in Python until the guest's first instructions have had an effect that
Python sees. On both sides a thread has freed the VM before: what the maker's own processor has just
freed would still be in its cache. `close`: what the caller of `close()` waits for, against giving
descriptors to a thread. `freed`: until the kernel has freed everything, by `close(wait=True)`,
against closing in place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..process import Words
from ..tools import tool
from .floors import compile_floor, floor
from .result import Row
from .rounds import Plan, Samples, fitting, measure, renewing
from .worker import Worker

_HERE = Path(__file__).resolve().parent
# VMs of one party in one round, for each of the two ways to close them: so many, or as many as a
# slow host makes in so many seconds.
_BATCH, _BATCH_SECONDS = 10, 0.5
_LEAST, _CAP = 80, 480
# Batches of one process.
_TURNS = 10
_LIMIT = 1.2

ENGINE = "kvm"
NEEDS = "kvm"
PLANS = (
    Plan("create", "us", "bare ioctls with the same slot and descriptors", _LIMIT),
    Plan("close", "us", "descriptors given to a thread", _LIMIT),
    Plan("freed", "us", "descriptors closed in place", _LIMIT),
)


def prepare() -> None:
    """Compile the floor."""
    compile_floor("create")


def needed() -> list[Path]:
    """What `prepare` makes."""
    return [floor("create")]


def run(told: Callable[[str], None]) -> list[Row]:
    """Measure."""
    subject: Words = [tool("python"), "-B", _HERE / "subject" / "create.py"]
    with Worker(subject) as ours, Worker([floor("create")]) as bare:
        size = min(
            fitting(partial(_batch, worker), _BATCH, _BATCH_SECONDS) for worker in (ours, bare)
        )
        told(f"batches of {size} VMs, at least {_LEAST} rounds")
        return measure(
            PLANS,
            renewing(ours, lambda: _batch(ours, size), _TURNS),
            renewing(bare, lambda: _batch(bare, size), _TURNS),
            least=_LEAST,
            cap=_CAP,
            told=told,
        )


def _batch(worker: Worker, size: int) -> Samples:
    handed = worker.ask(f"handoff {size}", size)
    freed = worker.ask(f"sync {size}", size)
    return {
        "create": [create / 1000 for create, _ in handed],
        "close": [close / 1000 for _, close in handed],
        "freed": [close / 1000 for _, close in freed],
    }
