"""The guest's memory."""

from __future__ import annotations

from vmlet._core import Machine, View
from vmlet.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

    from vmlet.inspection import PageSizes
    from vmlet.regions import Region, Unclaimed


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

    def __setitem__(self, where: slice, data: Buffer) -> None:
        first, end = _bounds(where)
        content = bytes(data)
        if len(content) != end - first:
            raise ConfigError(
                f"{len(content)} bytes do not fit a range of {end - first}",
                remedy="Give a range as long as the data.",
            )
        self._machine.write_memory(first, content)

    def view(self, gpa: int, length: int, writable: bool = False) -> View:
        """The memory itself by the buffer protocol, without a copy.

        The guest may change it while it is looked at. It stays valid after the VM is closed; in a
        forked child it reads as zeros. What can be written through it counts as dirty always.

        >>> import numpy
        >>> vm = vmlet.VM(kernel="vmlinuz")  # doctest: +SKIP
        >>> page = numpy.frombuffer(vm.memory.view(0x1000, 4096), "u8")  # doctest: +SKIP
        """
        for what, number in (("gpa", gpa), ("length", length)):
            if not 0 <= number < 1 << 64:
                raise ConfigError(
                    f"{what} cannot be {number}", remedy="vm.memory.regions() says what has memory."
                )
        return self._machine.view_memory(gpa, length, writable)

    def regions(self) -> list[Region]:
        """The ranges that have memory, by address."""
        from vmlet.regions import Region

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
        from vmlet.inspection import pages_of

        return pages_of(self._machine.page_sizes())

    def unclaimed(self) -> Unclaimed:
        """Accesses to addresses that have neither memory nor a device; `VM.unclaimed_ports` has
        those to ports."""
        from vmlet.regions import unclaimed_of

        return unclaimed_of(self._machine.unclaimed()[1])

    def dirty(self) -> list[tuple[int, int]]:
        """(address, bytes) of what was written since the last call, in whole pages.

        The first call switches logging on and gives all memory. `VM(dirty_ring=...)` makes calls
        cheap where memory is large and few pages are written.
        """
        return self._machine.dirty()


def _bounds(where: slice) -> tuple[int, int]:
    if not isinstance(where, slice) or where.step is not None:
        raise TypeError("give a range of addresses: memory[first:end]")
    if where.start is None or where.stop is None:
        raise TypeError("give both ends of the range: memory[first:end]")
    # It takes what has __index__, as `operator.index` does, which is a module more to import.
    whole = range(where.start, where.stop)
    first, end = whole.start, whole.stop
    if not 0 <= first <= end < 1 << 64:
        raise ConfigError(
            f"{first:#x}:{end:#x} is no range of addresses",
            remedy="vm.memory.regions() says what has memory.",
        )
    return first, end
