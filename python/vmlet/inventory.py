"""The PCI functions of this host, and what keeps each from being handed to user space."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

from vmlet import _core
from vmlet.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal

    from vmlet.nvme import NvmeController
    from vmlet.sriov import BorrowedVfs
    from vmlet.vf_network import VfNetwork
    from vmlet.vfio import Device

    _Switch = Literal["on", "off", "absent", "unknown"]

__all__ = [
    "IommuGroup",
    "Member",
    "Obstacle",
    "PciDevice",
    "ReservedRegion",
    "VirtualFunctions",
    "pci_device",
    "pci_devices",
]


@dataclass(frozen=True, slots=True)
class Member:
    """A function of an IOMMU group."""

    address: str
    driver: str | None


@dataclass(frozen=True, slots=True)
class ReservedRegion:
    """Device addresses, both ends included, that memory cannot be mapped at."""

    first: int
    last: int
    #: "msi", "direct", "reserved", ...
    kind: str


@dataclass(frozen=True, slots=True)
class IommuGroup:
    """Functions that the IOMMU cannot keep apart: they are handed on together or not at all."""

    number: int
    #: How the host uses it: "DMA", "DMA-FQ", "identity", ...
    kind: str | None
    members: tuple[Member, ...]
    reserved: tuple[ReservedRegion, ...]


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What keeps a function from being opened now."""

    cause: str
    remedy: str


@dataclass(frozen=True, slots=True)
class VirtualFunctions:
    """SR-IOV: how many virtual functions there can be, and are."""

    total: int
    enabled: int


@dataclass(frozen=True, slots=True)
class PciDevice:
    """A PCI function of the host."""

    #: "0000:01:00.0"
    address: str
    vendor: int
    device: int
    #: Class, subclass and programming interface.
    class_code: int
    driver: str | None
    driver_override: str | None
    group: IommuGroup | None
    #: The unit that translates its requests ("dmar0"), and what that is ("VT-d").
    iommu: str | None
    iommu_kind: str | None
    #: How the kernel can reset it, best first: "flr", "pm", "bus", ...
    reset_methods: tuple[str, ...]
    #: Extended capabilities. "unknown" where this user may not read them: `unknown_because`.
    ats: _Switch
    pri: _Switch
    pasid: _Switch
    #: "on": requests of what lies below cannot go around the IOMMU.
    acs: _Switch
    sriov: _Switch
    unknown_because: str | None
    virtual_functions: VirtualFunctions | None
    #: The function that this is a virtual one of.
    physical_function: str | None
    #: Empty: `vmlet.vfio.open` can open it.
    obstacles: tuple[Obstacle, ...]

    def bind(self, driver: Literal["vfio-pci"] = "vfio-pci") -> PciDevice:
        """Gives it to `driver`, as `vmlet.vfio.bind` does; the function as it is then."""
        from vmlet import vfio

        if driver != "vfio-pci":
            raise ConfigError(
                f"driver cannot be {driver!r}", remedy='Give "vfio-pci"; release() undoes it.'
            )
        vfio.bind(self.address)
        return pci_device(self.address)

    def release(self) -> PciDevice:
        """Gives it back, as `vmlet.vfio.release` does; the function as it is then."""
        from vmlet import vfio

        vfio.release(self.address)
        return pci_device(self.address)

    def open(self, *, iommu: Literal["iommufd", "type1"] | None = None) -> Device:
        """Opens it, as `vmlet.vfio.open` does."""
        from vmlet import vfio

        return vfio.open(self.address, iommu=iommu)

    def create_vfs(
        self,
        count: int,
        *,
        driver: Literal["vfio-pci"] | None = "vfio-pci",
        queues: int | None = None,
        interrupts: int | None = None,
    ) -> tuple[PciDevice, ...]:
        """Makes `count` virtual functions, as root; they stay until `remove_vfs`.

        They are given to `driver`, or to none. There may be none yet.

        An NVMe controller with virtualization management gives each so many queues (one of them for
        administration) and interrupts, or as many as if all that there can be were made, and they
        are online. Where it has to give up some of its own for that, it is reset, and the host's
        requests wait meanwhile.
        """
        from vmlet import sriov

        return sriov.create(self.address, count, driver, (queues, interrupts))

    def remove_vfs(self) -> PciDevice:
        """Removes them, as root; the function as it is then. Nobody may have one open."""
        from vmlet import sriov

        sriov.remove(self.address)
        return pci_device(self.address)

    def vfs(
        self,
        count: int,
        *,
        driver: Literal["vfio-pci"] | None = "vfio-pci",
        queues: int | None = None,
        interrupts: int | None = None,
    ) -> BorrowedVfs:
        """``with pf.vfs(4) as vfs``: virtual functions for as long as the block runs.

        The arguments are those of `create_vfs`. Close what you open of them before its end. After a
        killed process, the next use of the function or `vmlet.vfio.mend` removes them.
        """
        from vmlet.sriov import BorrowedVfs

        return BorrowedVfs(self.address, count, driver, (queues, interrupts))

    @property
    def network(self) -> VfNetwork:
        """What a virtual function of a network card has of it: MAC, VLAN."""
        from vmlet import vf_network

        return vf_network.read(self)

    @property
    def nvme(self) -> NvmeController:
        """Queues and interrupts of an NVMe controller with virtualization management, or of one of
        its virtual functions."""
        from vmlet import nvme

        return nvme.read(self)

    def configure(self, *, mac: str | None = None, vlan: int | None = None) -> VfNetwork:
        """Sets a virtual function's MAC and VLAN on its network card, as root.

        The card refuses other VLANs then; ``vlan=0`` is none. What is not given stays. Do it before
        who has the function starts it.
        """
        from vmlet import vf_network

        return vf_network.configure(self, mac, vlan)


def pci_devices() -> list[PciDevice]:
    """All PCI functions of this host, by address.

    >>> [one.address for one in pci_devices()] == sorted(one.address for one in pci_devices())
    True
    """
    return [_device(found) for found in json.loads(_core.host_pci())]


def pci_device(address: str) -> PciDevice:
    """One of them."""
    for found in pci_devices():
        if found.address in (address, f"0000:{address}"):
            return found
    raise ConfigError(
        f"there is no PCI function {address!r}",
        remedy="See vmlet vfio list for the functions there are.",
    )


def _device(found: dict[str, Any]) -> PciDevice:
    features, group = found["features"], found["group"]
    functions = found["virtual_functions"]
    known = {field.name for field in fields(PciDevice)} & found.keys()
    plain = {name: found[name] for name in known}
    return PciDevice(
        **{
            **plain,
            **features,
            "class_code": found["class"],
            "group": _group(group) if group else None,
            "reset_methods": tuple(found["reset_methods"]),
            "virtual_functions": VirtualFunctions(**functions) if functions else None,
            "obstacles": tuple(Obstacle(**one) for one in found["obstacles"]),
        }
    )


def _group(found: dict[str, Any]) -> IommuGroup:
    return IommuGroup(
        found["number"],
        found["kind"],
        tuple(Member(**one) for one in found["members"]),
        tuple(ReservedRegion(**one) for one in found["reserved"]),
    )
