"""PCI functions written in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vmlet._core import DeviceLink, attach_pci
from vmlet.devices.device import Device, number
from vmlet.errors import ConfigError

if TYPE_CHECKING:
    from vmlet._core import Machine

_MOST = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Bar:
    """A range of registers of a PCI function.

    >>> Bar(4096)
    Bar(size=4096, bits=32, prefetchable=False)
    """

    #: Bytes: a power of two, 128 at least.
    size: int
    #: 32 or 64; one of 64 takes the BAR register behind it too.
    bits: int = 32
    #: Reads have no effects; only with 64 bits.
    prefetchable: bool = False

    def _kind(self) -> str:
        if self.bits not in (32, 64) or (self.prefetchable and self.bits == 32):
            raise ConfigError(
                f"a BAR cannot be {self!r}", remedy="Give 32 or 64 bits; prefetchable with 64."
            )
        return "prefetchable" if self.prefetchable else str(self.bits)


@dataclass(frozen=True, slots=True)
class Capability:
    """A capability in a function's config space, of its own."""

    #: Id and body, without the link between them; 9 is the id of vendor-specific ones.
    content: bytes
    #: Which bits of ``content`` the guest can write; what is missing is read-only.
    writable: bytes = b""


class Vector:
    """A vector of MSI-X."""

    def __init__(self, link: DeviceLink, index: int) -> None:
        self._link = link
        self._index = index

    def trigger(self) -> None:
        """Sends its message; while it is masked, its pending bit is set instead."""
        self._link.trigger(self._index)


class Dma:
    """Guest memory as a device sees it."""

    def __init__(self, link: DeviceLink) -> None:
        self._link = link

    def read(self, address: int, length: int) -> bytes:
        """``length`` bytes; `GuestError` where the guest's memory does not serve that."""
        return self._link.dma_read(
            number("address", address, 0, _MOST), number("length", length, 0, 1 << 40)
        )

    def write(self, address: int, data: bytes) -> None:
        """Writes ``data``; `GuestError` where the guest's memory does not serve that."""
        self._link.dma_write(number("address", address, 0, _MOST), bytes(data))


class PciDevice(Device):
    """A PCI function, written in Python: what it is are attributes, what it does are methods.

    `irq` is its line INTA (with `interrupt_line`), `msix` its vectors, `dma` its way to memory.
    It takes a root port of the VM.

    >>> import vmlet
    >>> class Counter(vmlet.PciDevice):
    ...     vendor_id, device_id, class_code = 0x1234, 0x11E9, 0xFF0000
    ...     bars = {0: vmlet.Bar(4096)}
    ...     interrupt_line = True
    ...     count = 0
    ...     def read(self, bar, offset, size):
    ...         return self.count
    ...     def write(self, bar, offset, size, value):
    ...         self.count = value
    ...         self.irq.set(value != 0)
    >>> Counter()
    <Counter 1234:11e9>
    """

    vendor_id: ClassVar[int]
    device_id: ClassVar[int]
    subsystem_vendor_id: ClassVar[int] = 0
    subsystem_id: ClassVar[int] = 0
    revision: ClassVar[int] = 0
    #: Base class, sub-class and programming interface, as 0xbbsspp.
    class_code: ClassVar[int] = 0xFF0000
    #: Ranges of registers by BAR register, 0 to 5.
    bars: ClassVar[Mapping[int, Bar]] = {}
    #: Vectors of MSI-X; their table takes a BAR register that `bars` leaves free.
    vectors: ClassVar[int] = 0
    #: It has the line INTA.
    interrupt_line: ClassVar[bool] = False
    capabilities: ClassVar[Sequence[Capability]] = ()

    def read(self, bar: int, offset: int, size: int) -> int:
        """The guest reads ``size`` bytes (1 to 8) of a BAR; all ones unless overridden."""
        return (1 << 8 * size) - 1

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        """The guest writes ``value`` of ``size`` bytes (1 to 8) to a BAR."""

    def read_config(self, offset: int, size: int, value: int) -> int | None:
        """The guest reads config space, and would get ``value``: something else, or None."""
        return None

    def write_config(self, offset: int, size: int, value: int) -> None:
        """The guest has written to one of `capabilities`; ``offset`` is that in config space."""

    @property
    def msix(self) -> tuple[Vector, ...]:
        """The vectors."""
        link = self._linked()
        return tuple(Vector(link, index) for index in range(self.vectors))

    @property
    def dma(self) -> Dma:
        """Guest memory as the device sees it."""
        return Dma(self._linked())

    def _ids(self) -> tuple[int, int, int, int]:
        names = ("vendor_id", "device_id", "subsystem_vendor_id", "subsystem_id")
        values = [number(name, getattr(self, name, None), 0, 0xFFFF) for name in names]
        return values[0], values[1], values[2], values[3]

    def _msix(self) -> tuple[int, int] | None:
        vectors = number("vectors", self.vectors, 0, 2048)
        taken = {*self.bars, *(at + 1 for at, bar in self.bars.items() if bar.bits == 64)}
        free = [at for at in range(6) if at not in taken]
        if vectors and not free:
            raise ConfigError("no BAR register is left for MSI-X", remedy="Leave one free.")
        return (vectors, free[-1]) if vectors else None

    def _plug(self, machine: Machine, port: int | None) -> int:
        kind = type(self)
        code = number("class_code", self.class_code, 0, 0xFFFFFF)
        return attach_pci(
            machine,
            port,
            self,
            ids=self._ids(),
            revision=number("revision", self.revision, 0, 0xFF),
            class_code=list(code.to_bytes(3, "big")),
            bars=[(at, bar.size, bar._kind()) for at, bar in sorted(self.bars.items())],
            msix=self._msix(),
            intx=bool(self.interrupt_line),
            capabilities=[(bytes(c.content), bytes(c.writable)) for c in self.capabilities],
            config=(
                kind.read_config is not PciDevice.read_config,
                kind.write_config is not PciDevice.write_config,
            ),
        )

    def __repr__(self) -> str:
        vendor, device, _, _ = self._ids()
        return f"<{type(self).__name__} {vendor:04x}:{device:04x}>"
