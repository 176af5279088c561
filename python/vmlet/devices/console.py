"""Consoles beside the serial port."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmlet._core import attach_console
from vmlet.console import check_window
from vmlet.devices.model import Model

if TYPE_CHECKING:
    from vmlet._core import Machine

__all__ = ["VirtioConsole"]


@dataclass(frozen=True)
class VirtioConsole(Model):
    """A console (virtio-console), which Linux calls /dev/hvc0: quicker than the serial port.

    `vmlet.VM.terminal` is its other end. A VM has one.

    Args:
        columns: how wide the window is; 0: not known.
        rows: how high it is.
    """

    columns: int = 0
    rows: int = 0

    def __post_init__(self) -> None:
        check_window(self.columns, self.rows)

    def _plug(self, machine: Machine, port: int | None) -> int:
        return attach_console(machine, port, columns=self.columns, rows=self.rows)
