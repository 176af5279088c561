"""Seven integer kernels on the software CPU, against QEMU's translator (TCG) and the host itself.

The program is init in a Linux guest on two sides. Rows `tcg` and `native` are geometric means over
the kernels, whose own rows follow.
"""

from __future__ import annotations

from collections.abc import Callable

from . import guests
from .kernels import KERNELS, Comparison, Side
from .result import Row
from .worker import Worker

_ROUNDS = 10
_TCG = Comparison("tcg", "QEMU TCG", 3.0, _ROUNDS, _ROUNDS)
_NATIVE = Comparison("native", "the host's processor", 7.0, _ROUNDS, _ROUNDS)

ENGINE = "soft"
NEEDS = ""

prepare, needed = guests.prepare, guests.needed


def run(told: Callable[[str], None]) -> list[Row]:
    """Measure."""
    told(guests.qemu())
    commands = guests.subject("soft"), guests.tcg(), guests.native()
    with Worker(commands[0]) as ours, Worker(commands[1]) as tcg, Worker(commands[2]) as native:
        subject = Side(ours)
        rows = _TCG.rows(subject, Side(tcg), told) + _NATIVE.rows(subject, Side(native), told)
        for kernel in KERNELS:
            count = subject.instructions(kernel)
            cost = next(row.vmlet for row in rows if row.row == f"tcg:{kernel}")
            told(f"{kernel}: {count} instructions, {count / cost / 1000:.0f} MIPS")
    return rows
