"""Devices that are registers at fixed addresses."""

from __future__ import annotations

from vmlet._core import Batch
from vmlet.devices.device import Device, Spec, number
from vmlet.errors import ConfigError

_MOST = (1 << 64) - 1
_PINS = 23
#: Posted writes that wait, unless said otherwise.
_ROOM = 16384


class _Registers(Device):
    _space: str
    _limit: int

    def __init__(
        self,
        *,
        at: int,
        size: int,
        irq: int | None = None,
        posted: bool = False,
        room: int = _ROOM,
        delay: float = 0.001,
    ) -> None:
        #: The first address.
        self.at = number("at", at, 0, self._limit)
        #: Addresses.
        self.size = number("size", size, 1, self._limit + 1)
        #: Whether writes are posted.
        self.posted = bool(posted)
        self._pin = None if irq is None else number("irq", irq, 0, _PINS)
        self._room = number("room", room, 2, 1 << 24)
        if not isinstance(delay, (int, float)) or not 0 < delay <= 60:
            raise ConfigError(f"delay cannot be {delay!r}", remedy="Give seconds, up to 60.")
        self._delay = float(delay)

    def read(self, offset: int, size: int) -> int:
        """The guest reads ``size`` bytes (1 to 8) at ``offset``; all ones unless overridden."""
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest writes ``value`` of ``size`` bytes (1 to 8) at ``offset``."""

    def writes(self, batch: Batch) -> None:
        """The guest's writes since the last batch, where they are ``posted``.

        Calls `write` for each unless overridden.
        """
        write = self.write
        for offset, size, value in batch:
            write(offset, size, value)

    def _spec(self) -> Spec:
        posted = (self._room, self._delay) if self.posted else None
        return self, self._space, self.at, self.size, self._pin, posted

    def __repr__(self) -> str:
        at = getattr(self, "at", None)
        place = "" if at is None else f" at {at:#x}+{self.size:#x}"
        return f"<{type(self).__name__}{place}>"


class MmioDevice(_Registers):
    """Registers at guest-physical addresses, written in Python.

    Args:
        at: the first address, outside the VM's memory; from 0xf0000000 to 0xfebfffff all are free.
        size: addresses.
        irq: the pin of the I/O APIC that `irq` drives, 5 to 15 but not 8; None for none.
        posted: writes do not wait for Python. They come in batches (`writes`), soon after the guest
            made them and at the latest before the next `read` of this device. With
            ``clock="icount"`` each is a batch of its own, at its instruction.
        room: posted writes that may wait; the vCPU that makes the last of them delivers all.
        delay: seconds that a posted write may wait while others come.

    >>> import vmlet
    >>> class Adder(vmlet.MmioDevice):
    ...     total = 0
    ...     def write(self, offset, size, value):
    ...         self.total += value
    ...     def read(self, offset, size):
    ...         return self.total & (1 << 8 * size) - 1
    >>> adder = Adder(at=0xF000_0000, size=0x1000, irq=5)
    >>> adder
    <Adder at 0xf0000000+0x1000>
    >>> with vmlet.VM(kernel="vmlinuz", devices=[adder]) as vm:  # doctest: +SKIP
    ...     vm.run()
    """

    _space = "mmio"
    _limit = _MOST


class PioDevice(_Registers):
    """Registers at I/O ports, written in Python; the arguments are those of `MmioDevice`.

    >>> import vmlet
    >>> class Log(vmlet.PioDevice):
    ...     def __init__(self):
    ...         super().__init__(at=0x510, size=1, posted=True)
    ...         self.text = bytearray()
    ...     def writes(self, batch):
    ...         self.text += bytes(value for _, _, value in batch)
    >>> Log()
    <Log at 0x510+0x1>
    """

    _space = "pio"
    _limit = 0xFFFF
