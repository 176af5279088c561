"""What an NVMe controller that shares its queues has, and each of its virtual functions."""

from __future__ import annotations

from dataclasses import dataclass

from vmlet import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmlet.inventory import PciDevice

__all__ = ["NvmeController", "read"]


@dataclass(frozen=True, slots=True)
class NvmeController:
    """What a function has as a controller."""

    #: Its number among those of the card.
    number: int
    #: Whether it works. A virtual function does not before it has been given its share.
    online: bool
    #: One of them is for administration.
    queues: int
    interrupts: int


def read(function: PciDevice) -> NvmeController:
    """What the card says of it, as root."""
    return NvmeController(*_core.nvme_function(function.address))
