"""What devices that the core makes have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmlet._core import Machine

__all__ = ["Model"]


class Model(ABC):
    """A device that the core makes from plain data. One object can stand for many devices."""

    @abstractmethod
    def _plug(self, machine: Machine, port: int | None) -> int:
        """Makes the device and puts it into a root port (None: the first free one); says which."""
