"""What devices that the core makes have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vmlet.devices.device import Device
from vmlet.errors import ConfigError

if TYPE_CHECKING:
    from vmlet._core import Machine

__all__ = ["Model", "by_maker"]


class Model(ABC):
    """A device that the core makes from plain data. One object can stand for many devices."""

    @abstractmethod
    def _plug(self, machine: Machine, port: int | None) -> int:
        """Makes the device and puts it into a root port (None: the first free one); says which."""


def by_maker(devices: Sequence[Device | Model]) -> tuple[list[Model], list[Device]]:
    """The devices that the core makes, and those written in Python."""
    if isinstance(devices, (str, bytes)) or not hasattr(devices, "__iter__"):
        raise ConfigError(f"devices cannot be {devices!r}", remedy="Give a list of devices.")
    models: list[Model] = []
    written: list[Device] = []
    for device in devices:
        if isinstance(device, Model):
            models.append(device)
        elif isinstance(device, Device):
            written.append(device)
        else:
            raise ConfigError(
                f"{device!r} is no device",
                remedy="Give one such as vmlet.Disk, or derive one from vmlet.MmioDevice.",
            )
    return models, written
