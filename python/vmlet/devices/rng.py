"""Random bytes for guests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmlet._core import attach_rng
from vmlet.devices.model import Model

if TYPE_CHECKING:
    from vmlet._core import Machine

__all__ = ["Rng"]


@dataclass(frozen=True)
class Rng(Model):
    """A source of the host's random bytes (virtio-rng).

    With `clock="icount"` the bytes are the same in every run, and so not random.
    """

    def _plug(self, machine: Machine, port: int | None) -> int:
        return attach_rng(machine, port)
