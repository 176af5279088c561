"""Ranges of guest memory, and accesses to where nothing is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Access:
    """A guest's access to an address that has neither memory nor a device."""

    #: The port or the guest-physical address.
    address: int
    #: Bytes.
    length: int
    #: A write; a read got all ones.
    write: bool
    #: What was written.
    value: int


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """Accesses to nothing, in one address space: how many, and the last of them."""

    total: int
    recent: tuple[Access, ...]


@dataclass(frozen=True, slots=True)
class Region:
    """A range of guest-physical addresses with memory behind it."""

    #: First guest-physical address.
    gpa: int
    #: Bytes.
    length: int
    #: "ram", "rom" or "device".
    kind: str


def unclaimed_of(found: tuple[int, list[tuple[int, int, bool, int]]]) -> Unclaimed:
    """Accesses to nothing as the core gives them."""
    total, recent = found
    return Unclaimed(total, tuple(Access(*access) for access in recent))
