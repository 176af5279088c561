"""Memory that guests give back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmlet._core import attach_balloon
from vmlet.devices.model import Model
from vmlet.errors import ConfigError
from vmlet.sizes import parse_size

if TYPE_CHECKING:
    from vmlet._core import Machine

__all__ = ["Balloon"]


@dataclass(frozen=True)
class Balloon(Model):
    """A balloon (virtio-balloon), through which a guest gives memory back to the host.

    `vmlet.VM.balloon` works it. A VM has one.

    Args:
        target: what the guest is to give up from its start on: bytes, or text like "256M".
        deflate_on_oom: the guest may take memory back before it kills a program for want of it.
        reporting: the guest gives back, by and by, what it does not use (free page reporting).
    """

    target: int | str = 0
    deflate_on_oom: bool = True
    reporting: bool = True

    def __post_init__(self) -> None:
        target_of(self.target)
        for name in ("deflate_on_oom", "reporting"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ConfigError(f"{name} cannot be {value!r}", remedy="Give True or False.")

    def _plug(self, machine: Machine, port: int | None) -> int:
        return attach_balloon(
            machine,
            port,
            target=target_of(self.target),
            deflate_on_oom=self.deflate_on_oom,
            reporting=self.reporting,
        )


def target_of(size: int | str) -> int:
    """Bytes of a target that a VM could have."""
    target = parse_size(size)
    if target >= 1 << 63:
        raise ConfigError(f"target cannot be {size!r}", remedy="Give at most the VM's memory.")
    return target
