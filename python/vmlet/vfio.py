"""Devices of the host, driven from Python: registers, memory for DMA, interrupts.

The kernel's VFIO hands a device to one process, and the IOMMU keeps it to the memory that this
process maps for it::

    vmlet.vfio.bind("0000:01:00.0")             # once, as root
    with vmlet.vfio.open("0000:01:00.0") as device:
        registers = device.bars[0]
        registers.write(0x04, 0x12345678)
        (done,) = device.enable("MSI")
        buffer = device.dma(4096)
        ...                                     # tell the device buffer.iova
        done.wait(timeout=1)                    # or: await done
    vmlet.vfio.release("0000:01:00.0")          # the driver from before has it again
"""

from __future__ import annotations

import os

from vmlet import _core
from vmlet.errors import ConfigError, StateError, TimeoutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Generator
    from typing import Literal

    _InterruptKind = Literal["INTx", "MSI", "MSI-X"]
    _Iommu = Literal["iommufd", "type1"]

__all__ = ["Buffer", "Device", "Interrupt", "Region", "bind", "mend", "open", "release"]

#: Region numbers of VFIO.
_ROM, _CONFIG = 6, 7
_WIDTHS = (1, 2, 4, 8)


def bind(address: str) -> None:
    """Gives the device to the driver vfio-pci, as root; one that has it already is left alone.

    What the device had before is noted, for `release` in this process or another. Refused while a
    network interface of it is up, or a disk of it is mounted or swapped to.
    """
    _core.bind_vfio(address)


def release(address: str) -> None:
    """Gives the device back what it had before `bind`, as root. Nobody may have it open."""
    _core.release_vfio(address)


def mend() -> list[str]:
    """Puts back what killed processes have left, as root: bindings that were cut short, virtual
    functions of a ``with`` block. Gives the addresses of what was mended.

    Whole bindings stay, and virtual functions that `create_vfs` has made.
    """
    return _core.mend_vfio()


def open(address: str, *, iommu: _Iommu | None = None, beside: Device | None = None) -> Device:
    """Opens a device that is bound. It can reach no memory yet.

    `iommu` is the kernel's interface to take: "iommufd" has a file for each device, "type1" one for
    each IOMMU group. None takes iommufd where its files can be opened, else type1::

        with vmlet.vfio.open("0000:01:00.0", iommu="iommufd") as device:
            print(device.iommu)                 # iommufd

    Devices of one IOMMU group cannot be kept apart. Such a one is opened `beside` another, and each
    reaches the memory that either was given::

        with (
            vmlet.vfio.open("0000:04:00.0") as first,
            vmlet.vfio.open("0000:04:00.2", beside=first) as second,
        ):
            buffer = first.dma(4096)            # second reaches it at buffer.iova too
    """
    return Device(address, iommu, beside)


class Region:
    """Registers of a device: a BAR, its expansion ROM or config space."""

    def __init__(
        self, device: _core.VfioDevice, told: tuple[int, int, bool, bool, list[tuple[int, int]]]
    ) -> None:
        self._device = device
        self.index, self.size, self.readable, self.writable, areas = told
        #: Offset and length of the parts that `view` can give.
        self.areas = tuple(areas)

    def __repr__(self) -> str:
        return f"<Region {self.index}: {self.size:#x} bytes>"

    def __len__(self) -> int:
        return self.size

    def read(self, offset: int, width: int = 4) -> int:
        """A register of 1, 2, 4 or 8 bytes, in one access."""
        _check(offset, width)
        return int.from_bytes(self._device.read_region(self.index, offset, width), "little")

    def write(self, offset: int, value: int, width: int = 4) -> None:
        """Writes a register of 1, 2, 4 or 8 bytes, in one access."""
        _check(offset, width)
        if not 0 <= value < 1 << 8 * width:
            raise ConfigError(
                f"{value:#x} does not fit a register of {width} bytes",
                remedy="Mask the value, or give another width.",
            )
        self._device.write_region(self.index, offset, value.to_bytes(width, "little"))

    def view(self, offset: int = 0, length: int | None = None) -> memoryview:
        """The registers themselves; ``view().cast("I")`` has 32 bits an item.

        It is quicker than `read` and `write`, and nothing is checked. Once the device is closed it
        reads as zeros.
        """
        size = self.size - offset if length is None else length
        for what, number in (("offset", offset), ("length", size)):
            if number < 0:
                raise ConfigError(f"{what} cannot be {number}", remedy="See the region's size.")
        return memoryview(self._device.map_region(self.index, offset, size))


def _check(offset: int, width: int) -> None:
    if width not in _WIDTHS:
        raise ConfigError(f"width cannot be {width}", remedy="Give 1, 2, 4 or 8 bytes.")
    if offset < 0 or offset % width:
        raise ConfigError(
            f"offset cannot be {offset}", remedy=f"Give a multiple of the width, {width}."
        )


class Buffer:
    """Memory that a device can reach at `iova`.

    Until `unmap`, or the end of its ``with`` block or of the device; not until nobody has it any
    more, as the device may still use the address it was told.
    """

    def __init__(self, buffer: _core.DmaBuffer) -> None:
        self._buffer = buffer

    def __repr__(self) -> str:
        state = "" if self.mapped else ", unmapped"
        return f"<Buffer {self.iova:#x}: {self.size:#x} bytes{state}>"

    def __len__(self) -> int:
        return self.size

    def __enter__(self) -> Buffer:
        return self

    def __exit__(self, *_: object) -> None:
        self.unmap()

    @property
    def iova(self) -> int:
        """The address to tell the device."""
        return self._buffer.iova

    @property
    def size(self) -> int:
        """Bytes."""
        return self._buffer.size

    @property
    def readonly(self) -> bool:
        """Whether the device may only read."""
        return self._buffer.readonly

    @property
    def mapped(self) -> bool:
        """Whether the device can reach it still."""
        return self._buffer.mapped

    def view(self) -> memoryview:
        """The memory itself. It stays when the device cannot reach it any more."""
        return memoryview(self._buffer.view())

    def unmap(self) -> None:
        """Takes it from the device, which cannot reach it when this returns."""
        self._buffer.unmap()


class Interrupt:
    """One interrupt of a device: ``wait()``, or ``await`` it."""

    def __init__(self, vector: _core.VfioVector) -> None:
        self._vector = vector
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self._bell = -1

    def __repr__(self) -> str:
        return f"<Interrupt {self.kind} {self.number}>"

    @property
    def kind(self) -> str:
        """ "INTx", "MSI" or "MSI-X"; "failure" or "removal" where it is the kernel's word."""
        return self._vector.kind

    @property
    def number(self) -> int:
        """Which of its kind."""
        return self._vector.number

    def fileno(self) -> int:
        """The eventfd, readable when an interrupt has come; as long as the interrupt is on."""
        return self._vector.fileno()

    def wait(self, timeout: float | None = None) -> int:
        """How many have come since somebody asked, waiting for the first."""
        count = self._vector.wait(timeout)
        if count is None:
            raise TimeoutError(
                f"no {self.kind} interrupt {self.number} came within {timeout} s",
                remedy="Check that the device was told to send it, and that it is not masked.",
            )
        return count

    def __await__(self) -> Generator[object, None, int]:
        """How many have come since somebody asked; several tasks of one loop may wait."""
        return self._arrival().__await__()

    async def _arrival(self) -> int:
        # Imported by then, where a loop runs; it takes long.
        import asyncio

        loop = asyncio.get_running_loop()
        while (count := self._vector.wait(0)) is None:
            self._enter(loop)
            rung = loop.create_future()
            self._waiting.add(rung)
            try:
                await rung
            finally:
                self._leave(loop, rung)
        return count

    def _enter(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._waiting and self._loop is not loop:
            raise StateError(
                "another event loop waits for this interrupt", remedy="Wait in one loop at a time."
            )
        self._loop = loop
        if not self._waiting:
            # A descriptor of the loop's own: the core may close its one at any time.
            self._bell = os.dup(self._vector.fileno())
            loop.add_reader(self._bell, self._wake)

    def _leave(self, loop: asyncio.AbstractEventLoop, rung: asyncio.Future[None]) -> None:
        self._waiting.discard(rung)
        if not self._waiting:
            if not loop.is_closed():
                loop.remove_reader(self._bell)
            os.close(self._bell)

    def _wake(self) -> None:
        for rung in self._waiting:
            if not rung.done():
                rung.set_result(None)


class Device:
    """An open device; leaving its ``with`` block closes it."""

    def __init__(
        self, address: str, iommu: str | None = None, beside: Device | None = None
    ) -> None:
        self.address = address
        other = None if beside is None else beside._core
        self._core: _core.VfioDevice = _core.open_vfio(address, iommu, other)
        #: The kernel's interface that it was opened by: "iommufd" or "type1".
        self.iommu = self._core.iommu
        #: Its regions by VFIO's number: BARs are 0 to 5, the expansion ROM 6, config space 7.
        self.regions = {told[0]: Region(self._core, told) for told in self._core.regions()}
        #: How many interrupts of each kind it has.
        self.interrupts = dict(self._core.interrupts())
        news = {vector.kind: Interrupt(vector) for vector in self._core.news()}
        #: Comes when the device reports an error that it does not recover from.
        self.failure = news.get("failure")
        #: Comes when the host wants the device back, and again until it is closed: close it.
        self.removal = news.get("removal")

    def __repr__(self) -> str:
        return f"<Device {self.address}>"

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def bars(self) -> dict[int, Region]:
        """The BARs it has, by number."""
        return {number: found for number, found in self.regions.items() if number < _ROM}

    @property
    def config(self) -> Region:
        """Config space as VFIO shows it."""
        return self.regions[_CONFIG]

    @property
    def page_size(self) -> int:
        """What sizes and addresses of `dma` are multiples of."""
        return self._core.dma_limits()[0]

    @property
    def dma_ranges(self) -> list[tuple[int, int]]:
        """First and last addresses that the IOMMU translates for it."""
        return self._core.dma_limits()[1]

    def dma(self, size: int, *, iova: int | None = None, readonly: bool = False) -> Buffer:
        """Memory that the device can reach, zeros at first: at `iova`, or at a free address.

        ``readonly``: the device may read and not write.
        """
        for what, number in (("size", size), ("iova", iova or 0)):
            if not 0 <= number < 1 << 63:
                raise ConfigError(f"{what} cannot be {number}", remedy="Give whole pages.")
        return Buffer(self._core.dma(size, iova, readonly))

    def enable(self, kind: _InterruptKind, count: int = 1) -> tuple[Interrupt, ...]:
        """Switches the first `count` interrupts of a kind on. One kind at a time can be."""
        if not 0 <= count < 1 << 32:
            raise ConfigError(f"count cannot be {count}", remedy="See the device's interrupts.")
        return tuple(Interrupt(vector) for vector in self._core.enable(kind, count))

    def disable(self) -> None:
        """Switches interrupts off; who waits for one gets a ClosedError."""
        self._core.disable()

    def unmask(self) -> None:
        """Lets the line (INTx) come again: it is masked when it comes in."""
        self._core.unmask()

    @property
    def resets(self) -> bool:
        """Whether it can be reset: alone, or with all that its slot or bus is reset with."""
        return self._core.resets

    def reset(self) -> None:
        """Resets it. Its buffers and interrupts stay as they are.

        Where the kernel cannot reset it alone, it resets its slot or bus, if everything on that is
        bound and open `beside` this device, or not open: those are reset too.
        """
        self._core.reset()

    def close(self) -> None:
        """Ends its interrupts, takes all memory from it and lets others open it."""
        self._core.close()
