"""virtio devices written in Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from vmlet._core import Queue, attach_virtio
from vmlet.devices.device import Device, number
from vmlet.errors import ConfigError

if TYPE_CHECKING:
    from vmlet._core import Machine


class VirtioDevice(Device):
    """A virtio device, written in Python, over PCI with MSI-X: its stock driver drives it.

    `notified` has the driver's buffers. It runs on a thread of the device's own, or with
    ``clock="icount"`` on that of the vCPU that notifies, at its instruction. The device takes a
    root port of the VM.

    >>> import vmlet
    >>> class Dice(vmlet.VirtioDevice):
    ...     device_type = 4                       # an entropy device: drivers of virtio-rng
    ...     queues = (64,)
    ...     def notified(self, queue):
    ...         for chain in queue:               # given back when the next one is asked for
    ...             chain.write(bytes([4]) * chain.writable)
    >>> Dice()
    <Dice of type 4>
    """

    #: The device type (virtio 1.2, section 5).
    device_type: ClassVar[int]
    #: The most entries of each queue, powers of two.
    queues: ClassVar[Sequence[int]] = (256,)
    #: Feature bits of the device type; those of the transport are added.
    features: ClassVar[int] = 0
    #: Base class, sub-class and programming interface of the PCI function, as 0xbbsspp.
    class_code: ClassVar[int] = 0xFF0000
    #: The device's configuration, which `read_config` answers from; it may be replaced.
    config: bytes = b""

    def ready(self, features: int) -> None:
        """The driver is ready, with these features."""

    def notified(self, queue: Queue) -> None:
        """The driver has made chains of buffers available, or asks whether it need do more."""

    def read_config(self, offset: int, size: int) -> bytes:
        """The driver reads the configuration; what is missing reads as zeros."""
        return self.config[offset : offset + size]

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver writes the configuration."""

    def queue(self, index: int) -> Queue | None:
        """A queue, to be used outside of `notified`; None while no driver uses it."""
        return self._linked().queue(number("index", index, 0, 0xFFFF))

    def config_changed(self) -> None:
        """Tells the driver that the configuration has changed."""
        self._linked().config_changed()

    def _plug(self, machine: Machine, port: int | None) -> int:
        code = number("class_code", self.class_code, 0, 0xFFFFFF)
        queues = [number("a queue's size", size, 1, 32768) for size in self.queues]
        if not queues or len(queues) > 64 or any(size & (size - 1) for size in queues):
            raise ConfigError(
                f"queues cannot be {self.queues!r}",
                remedy="Give 1 to 64 sizes, each a power of two.",
            )
        return attach_virtio(
            machine,
            port,
            self,
            kind=number("device_type", getattr(self, "device_type", None), 1, 63),
            class_code=list(code.to_bytes(3, "big")),
            features=number("features", self.features, 0, (1 << 64) - 1),
            queues=queues,
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of type {getattr(self, 'device_type', None)}>"
