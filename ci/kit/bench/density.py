"""A thousand VMs alive in one Python process, each with a guest that sleeps.

`pss`: what a VM adds to the process' memory (proportional set size), beside the guest pages that
were touched. The guests answer again after the idle time, and nothing is left of them at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..process import CommandError, Words
from ..tools import tool
from .floors import assemble_guest, guest
from .result import Row
from .statistics import verdict
from .worker import Worker

_HERE = Path(__file__).resolve().parent
_COUNT, _IDLE_SECONDS = 1000, 5
_ALLOWED_KIB = 64
# The C library keeps stacks of threads that have ended, 40 MiB of them, each a mapping and its
# guard, and the heaps that threads allocated from.
_KEPT_MAPPINGS = 100

ENGINE = "kvm"
NEEDS = "kvm"


@dataclass(frozen=True)
class Found:
    """The line that `subject/density.py` prints."""

    beside: int
    within: int
    available: int
    idle: int
    made: int
    answered: int
    descriptors: int
    threads: int
    mappings: int

    def left(self) -> list[str]:
        """What closing all VMs has left behind."""
        allowed = {"descriptors": 0, "threads": 0, "mappings": _KEPT_MAPPINGS}
        counts = {name: int(getattr(self, name)) for name in allowed}
        return [f"{counts[name]} {name}" for name, most in allowed.items() if counts[name] > most]

    def told(self, count: int) -> list[str]:
        """What is printed beside the row."""
        guest_kib, available_kib = (size / count / 1024 for size in (self.within, self.available))
        share = self.idle / (_IDLE_SECONDS * 1e9)
        return [
            f"{count} VMs: made in {self.made / count / 1000:.0f} us each, all answered again in "
            f"{self.answered / count / 1000:.0f} us each",
            f"a VM: {guest_kib:.0f} KiB of guest pages touched, "
            f"MemAvailable fell by {available_kib:.0f} KiB",
            f"idle: {100 * share:.2f} % of a processor for all",
            f"left when all were closed: {self.descriptors} descriptors, {self.threads} threads, "
            f"{self.mappings} mappings",
        ]


def prepare() -> None:
    """Assemble the guest."""
    assemble_guest("echo")


def needed() -> list[Path]:
    """What `prepare` makes."""
    return [guest("echo")]


def run(told: Callable[[str], None]) -> list[Row]:
    """Measure."""
    subject: Words = [tool("python"), "-B", _HERE / "subject" / "density.py", guest("echo")]
    with Worker(subject) as worker:
        (numbers,) = worker.ask(f"{_COUNT} {_IDLE_SECONDS}", 1)
    found = Found(*numbers)
    for line in found.told(_COUNT):
        told(line)
    if left := found.left():
        raise CommandError(f"closing all VMs has left {', '.join(left)}")
    return [row(found.beside / _COUNT / 1024)]


def row(kib: float) -> Row:
    """The row `pss`. The reference is a number, so that one round decides."""
    ratio = kib / _ALLOWED_KIB
    return Row(
        row="pss",
        unit="KiB",
        vmlet=kib,
        reference=_ALLOWED_KIB,
        reference_name=f"what is allowed a VM; {_COUNT} VMs of 256 MiB and one vCPU",
        ratio=ratio,
        control=1,
        rounds=1,
        limit=1,
        verdict=verdict(ratio, 1, 1),
    )
