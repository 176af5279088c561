"""The memory that a guest gives back: `vmlet.VM.balloon`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmlet._core import ask_balloon, balloon_state, balloon_statistics, inflate_balloon
from vmlet.devices.balloon import target_of
from vmlet.errors import TimeoutError

if TYPE_CHECKING:
    from vmlet._core import Machine

__all__ = ["Ballooning"]


class Ballooning:
    """Works the `vmlet.Balloon` of a VM. Sizes are in bytes.

    >>> vm.balloon.target = "512M"  # doctest: +SKIP
    >>> vm.balloon.size, vm.balloon.statistics()["free_memory"]  # doctest: +SKIP
    (536870912, 123456789)
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    @property
    def target(self) -> int:
        """What the guest is asked to have given up; it can be set, also to text like "256M"."""
        return balloon_state(self._machine)[0]

    @target.setter
    def target(self, size: int | str) -> None:
        inflate_balloon(self._machine, target_of(size))

    @property
    def size(self) -> int:
        """What the guest has given up, as it says."""
        return balloon_state(self._machine)[1]

    @property
    def given_back(self) -> int:
        """What went back to the host since the VM was made, by the balloon or as free pages."""
        return balloon_state(self._machine)[2]

    @property
    def kept(self) -> int:
        """What the guest gave up and the host could not take: parts of huge pages, memory that a
        view or a device holds."""
        return balloon_state(self._machine)[3]

    @property
    def has_driver(self) -> bool:
        """Whether the guest's driver is there."""
        return balloon_state(self._machine)[4]

    def statistics(self, timeout: float | None = 10) -> dict[str, int]:
        """The guest's own figures: bytes of ``free_memory``, ``total_memory``,
        ``available_memory``, ``disk_caches``, ``swap_in`` and ``swap_out``; counts of
        ``major_faults``, ``minor_faults``, ``huge_page_allocations`` and ``huge_page_failures``. A
        guest may leave some out.

        Raises:
            TimeoutError: the guest has not answered, as its driver is not there or it is paused.
        """
        before = ask_balloon(self._machine)
        found = balloon_statistics(self._machine, before, timeout)
        if found is None:
            raise TimeoutError(
                f"the guest has given no figures of its memory in {timeout} s",
                remedy="Check that it runs with its driver, virtio_balloon.",
            )
        return found

    def __repr__(self) -> str:
        return f"<vmlet.balloon.Ballooning of {self._machine!r}>"
