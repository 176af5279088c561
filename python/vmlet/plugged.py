"""What is in a VM's root ports."""

from __future__ import annotations

from vmlet._core import Machine, plugged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmlet.inventory import PciDevice

__all__ = ["PluggedDevice", "devices"]

_HOSTS = "vfio "


class PluggedDevice(str):
    """A device in a root port: its name, and what is known of it.

    >>> PluggedDevice("virtio-blk") == "virtio-blk"
    True
    >>> PluggedDevice("virtio-blk").ats
    False
    """

    __slots__ = ()

    @property
    def function(self) -> PciDevice | None:
        """The function of the host that it is, as it is now; None where the VM itself makes it."""
        if not self.startswith(_HOSTS):
            return None
        from vmlet.inventory import pci_device

        return pci_device(self.removeprefix(_HOSTS))

    @property
    def ats(self) -> bool | None:
        """Whether it keeps translations of the IOMMU in a cache of its own (ATS), and that is on.

        None where this user may not read it; `ats_unknown_because` says why.
        """
        function = self.function
        if function is None:
            return False
        return None if function.ats == "unknown" else function.ats == "on"

    @property
    def ats_unknown_because(self) -> str | None:
        """Why `ats` is None."""
        function = self.function
        return function.unknown_because if function is not None else None


def devices(machine: Machine) -> dict[int, PluggedDevice]:
    """Root ports and what is in them."""
    return {port: PluggedDevice(name) for port, name in plugged(machine)}
