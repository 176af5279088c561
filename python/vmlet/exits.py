"""What takes a VM's vCPUs out of guest code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

#: Names of the kinds that have places, as `Exits` has them.
_KINDS = ("port_reads", "port_writes", "memory_reads", "memory_writes")
#: Rows of the printed table.
_ROWS = 16


@dataclass(frozen=True, slots=True)
class Exits:
    """How often the guest reached a device, by kind and place; `print` gives a table.

    Exits that KVM serves by itself, and those of eventfds, are not among them: `Vcpu.stats` has
    KVM's own counters.

    >>> exits = Exits(port_writes=Counter({0x3F8: 12}), memory_reads=Counter({0xFEC00000: 3}))
    >>> exits.total
    15
    >>> print(exits)
         count  kind           place
            12  port writes    0x3f8
             3  memory reads   0xfec00000
    """

    #: Port -> reads.
    port_reads: Counter[int] = field(default_factory=Counter)
    #: Port -> writes. A string written by one instruction (``rep outs``) may be one.
    port_writes: Counter[int] = field(default_factory=Counter)
    #: First guest-physical address of a 4 KiB page -> reads that no memory served.
    memory_reads: Counter[int] = field(default_factory=Counter)
    #: First guest-physical address of a 4 KiB page -> writes that no memory served.
    memory_writes: Counter[int] = field(default_factory=Counter)
    #: Level interrupts that the guest ended at its local APIC.
    ends_of_interrupt: int = 0
    #: Accesses to more places than are kept apart (512 a vCPU).
    elsewhere: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        places = sum(getattr(self, kind).total() for kind in _KINDS)
        return int(places) + self.ends_of_interrupt + self.elsewhere

    def __add__(self, other: Exits) -> Exits:
        places = {kind: getattr(self, kind) + getattr(other, kind) for kind in _KINDS}
        return Exits(
            **places,
            ends_of_interrupt=self.ends_of_interrupt + other.ends_of_interrupt,
            elsewhere=self.elsewhere + other.elsewhere,
        )

    def __str__(self) -> str:
        rows = [
            (count, kind.replace("_", " "), f"{place:#x}")
            for kind in _KINDS
            for place, count in getattr(self, kind).items()
        ]
        rows += [(self.ends_of_interrupt, "ends of interrupt", "")]
        rows += [(self.elsewhere, "elsewhere", "")]
        rows = sorted((row for row in rows if row[0]), key=lambda row: (-row[0], row[1:]))
        lines = [f"{'count':>10}  {'kind':<14} place"]
        lines += [
            f"{count:>10}  {kind:<14} {place}".rstrip() for count, kind, place in rows[:_ROWS]
        ]
        if len(rows) > _ROWS:
            lines.append(f"{sum(row[0] for row in rows[_ROWS:]):>10}  at {len(rows) - _ROWS} more")
        return "\n".join(lines)


def exits_of(found: Iterable[dict[str, Any]]) -> Exits:
    """The sum of what the core gives for each vCPU."""
    return sum((_exits_of(one) for one in found), Exits())


def _exits_of(found: dict[str, Any]) -> Exits:
    places = {kind: Counter(found[kind]) for kind in _KINDS}
    return Exits(
        **places, ends_of_interrupt=found["ends_of_interrupt"], elsewhere=found["elsewhere"]
    )
