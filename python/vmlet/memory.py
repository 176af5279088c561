"""The guest's memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmlet._core import Machine, View
from vmlet.inspection import PageSizes, pages_of

if TYPE_CHECKING:
    from collections.abc import Buffer
else:
    Buffer = bytes


@dataclass(frozen=True, slots=True)
class Region:
    """A range of guest-physical addresses with memory behind it."""

    #: First guest-physical address.
    gpa: int
    #: Bytes.
    length: int
    #: "ram", "rom" or "device".
    kind: str


class Memory:
    """Guest-physical memory, indexed by address.

    >>> import vmlet
    >>> vm = vmlet.VM(kernel="vmlinuz")  # doctest: +SKIP
    >>> vm.memory[0x1000:0x1004] = b"abcd"  # doctest: +SKIP
    >>> vm.memory[0x1000:0x1004]  # doctest: +SKIP
    b'abcd'
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def __len__(self) -> int:
        """Bytes of RAM."""
        return self._machine.memory_size

    def __getitem__(self, where: slice) -> bytes:
        """A copy of ``memory[first:end]``, both guest-physical addresses."""
        first, end = _bounds(where)
        return self._machine.read_memory(first, end - first)

    def __setitem__(self, where: slice, data: bytes) -> None:
        first, end = _bounds(where)
        if len(data) != end - first:
            raise ValueError(f"{len(data)} bytes do not fit a range of {end - first}")
        self._machine.write_memory(first, data)

    def view(self, gpa: int, length: int, writable: bool = False) -> View:
        """The memory itself by the buffer protocol, without a copy.

        The guest may change it while it is looked at. It stays valid after the VM is closed; in a
        forked child it reads as zeros. What can be written through it counts as dirty always.
        """
        return self._machine.view_memory(gpa, length, writable)

    def regions(self) -> list[Region]:
        """The ranges that have memory, by address."""
        return [Region(*region) for region in self._machine.regions()]

    def page_sizes(self) -> PageSizes:
        """In which pages the second stage can map this memory, and in which it does now.

        >>> import vmlet
        >>> vm = vmlet.VM(kernel="vmlinuz", ram="hugetlb:2M")  # doctest: +SKIP
        >>> print(vm.memory.page_sizes())  # doctest: +SKIP
        slot 0 0x0+0x10000000 at 0x7f4c40000000: can be 128 x 2 MiB
        mapped: 3 x 2 MiB
        255999 of 262144 KiB are not mapped: KVM maps a page when the guest first touches it
        """
        return pages_of(self._machine.page_sizes())

    def dirty(self) -> list[tuple[int, int]]:
        """(address, bytes) of what was written since the last call, in whole pages.

        The first call switches logging on and gives all memory.
        """
        return self._machine.dirty()


def _bounds(where: slice) -> tuple[int, int]:
    if not isinstance(where, slice) or where.step is not None:
        raise TypeError("give a range of addresses: memory[first:end]")
    if where.start is None or where.stop is None:
        raise TypeError("give both ends of the range: memory[first:end]")
    if not 0 <= where.start <= where.stop:
        raise ValueError(f"{where.start:#x}:{where.stop:#x} is no range of addresses")
    return where.start, where.stop
