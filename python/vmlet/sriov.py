"""Virtual functions of a physical function: made, lent for a block, removed."""

from __future__ import annotations

import os

from vmlet import _core
from vmlet.errors import ConfigError, Error, StateError
from vmlet.inventory import PciDevice, pci_devices

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    _Driver = Literal["vfio-pci"] | None

__all__ = ["BorrowedVfs", "Share", "create", "functions", "remove"]

#: What each gets of an NVMe controller: queues and interrupts; None: an equal part.
Share = tuple[int | None, int | None]


def create(address: str, count: int, driver: _Driver, share: Share) -> tuple[PciDevice, ...]:
    """Makes virtual functions that stay."""
    return _create(address, count, driver, share, lent=False)


def _create(
    address: str, count: int, driver: _Driver, share: Share, *, lent: bool
) -> tuple[PciDevice, ...]:
    if driver not in ("vfio-pci", None):
        raise ConfigError(
            f"driver cannot be {driver!r}",
            remedy='Give "vfio-pci", or None for virtual functions without a driver.',
        )
    if not 0 <= count < 1 << 32:
        raise ConfigError(f"count cannot be {count}", remedy="See virtual_functions.total.")
    for what, number in zip(("queues", "interrupts"), share, strict=True):
        if number is not None and not 0 <= number < 1 << 16:
            raise ConfigError(
                f"{what} cannot be {number}", remedy="Leave it out, and each gets an equal part."
            )
    return _devices(_core.create_vfs(address, count, driver is not None, lent, share))


def remove(address: str) -> None:
    """Removes them."""
    _core.remove_vfs(address)


def functions(address: str) -> tuple[PciDevice, ...]:
    """Those there are, in the order of their numbers."""
    return _devices(_core.virtual_functions(address))


def _devices(addresses: list[str]) -> tuple[PciDevice, ...]:
    every = {found.address: found for found in pci_devices()}
    return tuple(every[address] for address in addresses if address in every)


class BorrowedVfs:
    """A ``with`` block with virtual functions."""

    def __init__(self, address: str, count: int, driver: _Driver, share: Share) -> None:
        self._address = address
        self._count = count
        self._driver = driver
        self._share = share
        self._process: int | None = None

    def __enter__(self) -> tuple[PciDevice, ...]:
        if self._process is not None:
            raise StateError(
                f"the virtual functions of {self._address} are there already",
                remedy="Call vfs() for each block.",
            )
        found = _create(self._address, self._count, self._driver, self._share, lent=True)
        self._process = os.getpid()
        return found

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        # A forked child leaves the block too; they are its parent's.
        if self._process != os.getpid():
            return
        try:
            remove(self._address)
        except Error as failed:
            if error is None:
                raise
            # What ended the block may be why somebody still has one open, and is told first.
            error.add_note(f"The virtual functions of {self._address} stay: {failed}")
        else:
            self._process = None
