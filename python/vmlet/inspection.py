"""How an address is translated, and in which pages memory is mapped.

A guest's linear address goes through two stages: the guest's own page tables give a
guest-physical address, and the processor's second stage (EPT on Intel, NPT on AMD) gives the
host's. The first stage lies in guest memory and is read as the processor reads it. The second
belongs to KVM, whose tables no user can read: what is shown of it is the memory slot, the address
in this process, and the largest page that the slot's addresses and its backing allow there.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class SecondStage:
    """The second stage behind a guest-physical address, as the memory slots guarantee it."""

    #: The memory slot's number.
    slot: int
    #: The slot's first guest-physical address.
    slot_gpa: int
    #: The slot's bytes.
    slot_length: int
    #: Where the address lies in this process.
    hva: int
    #: The largest page that can map it, in bytes; KVM uses smaller ones where the host's memory is
    #: not in such pages.
    page_size: int
    #: What forbids a larger page: "none", "backing", "misaligned", "hole" or "dirty log".
    limit: str
    #: Guest writes are not memory writes.
    readonly: bool


@dataclass(frozen=True, slots=True)
class WalkStep:
    """One entry of the guest's page tables."""

    #: 5 to 1.
    level: int
    #: "PML5E", "PML4E", "PDPTE", "PDE" or "PTE".
    name: str
    #: Where the entry lies, guest-physical.
    gpa: int
    #: The entry.
    entry: int
    #: It and all entries above allow writes.
    writable: bool
    #: It and all entries above allow user mode.
    user: bool
    #: Neither it nor an entry above forbids execution.
    executable: bool
    #: Bytes of the page, if the entry is one; else None.
    page_size: int | None
    #: What lies behind the entry's address; None where no memory is.
    second_stage: SecondStage | None


@dataclass(frozen=True, slots=True)
class Walk:
    """The walk of a guest's page tables for one linear address; `print` gives a table.

    It says what the tables hold, not whether an access would be allowed: SMEP, SMAP, protection
    keys and CR0.WP are left to the reader, as are TLBs that may still hold what tables said before.
    """

    #: The linear address.
    address: int
    #: CR3.
    cr3: int
    #: Levels of the tables: 0 without paging, 2, 3 (PAE), 4 or 5.
    levels: int
    #: The entries, from the highest level down.
    steps: tuple[WalkStep, ...]
    #: Why there is no page; None if there is one.
    fault: str | None
    #: The guest-physical address; None after a fault, as all that follows.
    gpa: int | None = None
    #: Bytes of the page in the guest's tables.
    page_size: int | None = None
    #: The tables allow writes.
    writable: bool | None = None
    #: The tables allow user mode.
    user: bool | None = None
    #: The tables allow execution.
    executable: bool | None = None
    #: What lies behind the guest-physical address; None where no memory is.
    second_stage: SecondStage | None = None

    def json(self) -> str:
        """The walk as JSON: the fields of the dataclasses by name.

        >>> Walk(address=0, cr3=0, levels=0, steps=(), fault="no").json()[:26]
        '{"address": 0, "cr3": 0, "'
        """
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        rows = [("", "entry at", "entry", "allows", "leads to", "second stage")]
        rows += [_row(step) for step in self.steps]
        rows.append(self._end())
        widths = [max(len(row[column]) for row in rows) for column in range(6)]
        paged = f"{self.levels} levels from CR3 {self.cr3:#x}" if self.levels else "no paging"
        lines = [f"linear {self.address:#x}, {paged}"]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append("  ".join(cells).rstrip())
        if self.fault is not None:
            lines.append(f"fault: {self.fault}")
        return "\n".join(lines)

    def _end(self) -> tuple[str, str, str, str, str, str]:
        if self.gpa is None:
            return "fault", "", "", "", "", ""
        rights = _rights(bool(self.writable), bool(self.user), bool(self.executable))
        return "page", f"{self.gpa:#x}", "", rights, "", _stage(self.second_stage)


def _row(step: WalkStep) -> tuple[str, str, str, str, str, str]:
    leads = "" if step.page_size is None else f"page of {size_name(step.page_size)}"
    if step.page_size is None and step.entry & 1:
        leads = "table"
    rights = _rights(step.writable, step.user, step.executable) if step.entry & 1 else "nothing"
    stage = _stage(step.second_stage)
    return step.name, f"{step.gpa:#x}", f"{step.entry:#x}", rights, leads, stage


def _rights(writable: bool, user: bool, executable: bool) -> str:
    return f"r{'w' if writable else '-'}{'x' if executable else '-'} {'user' if user else 'system'}"


def _stage(stage: SecondStage | None) -> str:
    if stage is None:
        return "no memory"
    limit = "" if stage.limit == "none" else f" ({stage.limit})"
    size = size_name(stage.page_size)
    return f"slot {stage.slot} -> {stage.hva:#x}, pages up to {size}{limit}"


def size_name(size: int) -> str:
    """A page size as people write it.

    >>> size_name(4096), size_name(2 << 20), size_name(1 << 30)
    ('4 KiB', '2 MiB', '1 GiB')
    """
    for shift, unit in ((30, "GiB"), (20, "MiB")):
        if size >= 1 << shift:
            return f"{size >> shift} {unit}"
    return f"{size >> 10} KiB"


@dataclass(frozen=True, slots=True)
class SlotPages:
    """The pages that can map one memory slot."""

    #: The slot's number.
    slot: int
    #: First guest-physical address.
    gpa: int
    #: Bytes.
    length: int
    #: Where it lies in this process.
    hva: int
    #: Page size in bytes -> pages, where the host's memory comes in such pages.
    achievable: dict[int, int]
    #: The largest page that the backing can give: 2 MiB (transparent huge pages) or the pool's.
    backing: int
    #: What forbids a page larger than the largest: "none", "backing", "misaligned", "hole" or
    #: "dirty log".
    limit: str


@dataclass(frozen=True, slots=True)
class PageSizes:
    """In which pages the second stage can map the guest's memory, and in which it does."""

    #: What each slot allows.
    slots: tuple[SlotPages, ...]
    #: Page size in bytes -> pages that KVM has mapped now; None where the engine does not count.
    achieved: dict[int, int] | None
    #: Why the two differ, and why there are no larger pages, one sentence each.
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        lines = []
        for slot in self.slots:
            where = f"slot {slot.slot} {slot.gpa:#x}+{slot.length:#x} at {slot.hva:#x}"
            lines.append(f"{where}: can be {_counts(slot.achievable)}")
        achieved = "not counted" if self.achieved is None else _counts(self.achieved)
        return "\n".join([*lines, f"mapped: {achieved}", *self.reasons])


def _counts(pages: dict[int, int]) -> str:
    used = [f"{count} x {size_name(size)}" for size, count in pages.items() if count]
    return ", ".join(used) or "nothing"


def walk_of(found: dict[str, Any]) -> Walk:
    """A walk as the core gives it."""
    steps = tuple(
        WalkStep(**{**step, "second_stage": _stage_of(step["second_stage"])})
        for step in found["steps"]
    )
    stage = _stage_of(found.get("second_stage"))
    return Walk(**{**found, "steps": steps, "second_stage": stage})


def _stage_of(found: dict[str, Any] | None) -> SecondStage | None:
    return None if found is None else SecondStage(**found)


def pages_of(found: dict[str, Any]) -> PageSizes:
    """Page sizes as the core gives them."""
    slots = tuple(SlotPages(**slot) for slot in found["slots"])
    return PageSizes(slots, found["achieved"], found["reasons"])
