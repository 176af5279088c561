"""Devices of the host that guests drive."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vmlet._core import attach_vfio
from vmlet.devices.model import Model
from vmlet.errors import ConfigError

if TYPE_CHECKING:
    from vmlet._core import Machine
    from vmlet.inventory import PciDevice

__all__ = ["Vfio"]

_ADDRESS = re.compile("([0-9a-fA-F]{1,8}:)?[0-9a-fA-F]{1,2}:[0-9a-fA-F]{1,2}[.][0-7]")


@dataclass(frozen=True)
class Vfio(Model):
    """A PCI function of the host (docs/passthrough.md), which the guest drives as if wired to it.

    It has to be bound, as for `vmlet.vfio.open`, and belongs to one VM at a time, as all of its
    IOMMU group does: others of the group can be given to the same VM. All of the VM's
    memory is locked while it is there, and the function can reach nothing else. Such a VM cannot be
    saved, and its memory does not go back to the host by a balloon.

    Args:
        function: its address ("0000:01:10.0"), or what `vmlet.host.pci_device` and ``card.vfs()``
            give.
        iommu: by which of the kernel's interfaces it is opened, "iommufd" or "type1"; None for
            iommufd where its files can be opened, else type1.
    """

    function: str | PciDevice
    iommu: Literal["iommufd", "type1"] | None = None

    def __post_init__(self) -> None:
        if not _ADDRESS.fullmatch(self.address):
            raise ConfigError(
                f"function cannot be {self.function!r}",
                remedy="Give an address as 0000:01:10.0; vmlet vfio list shows them.",
            )

    @property
    def address(self) -> str:
        """The function's address."""
        return str(getattr(self.function, "address", self.function))

    def _plug(self, machine: Machine, port: int | None) -> int:
        return attach_vfio(machine, port, address=self.address, iommu=self.iommu)
