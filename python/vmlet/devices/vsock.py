"""Sockets between a guest and its host."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmlet._core import attach_vsock
from vmlet.devices.model import Model
from vmlet.errors import ConfigError

if TYPE_CHECKING:
    from vmlet._core import Machine

__all__ = ["Vsock"]


@dataclass(frozen=True)
class Vsock(Model):
    """Streams between a guest and this process or Unix sockets (virtio-vsock, AF_VSOCK).

    `vmlet.VM.vsock` opens and takes streams. A VM has one such device; with `clock="icount"` it has
    none.

    Args:
        cid: the guest's context id, 3 or more. Only the guest sees it: VMs may share one.
        path: where programs of the host connect to the guest's ports: they send ``CONNECT port``
            and a newline, and are answered by ``OK``, a port and a newline, or by the stream's end.
            The guest's connections to port N of the host, where this process does not take them,
            go to the Unix socket at this path with ``_N`` behind. None: streams of this process
            only.
    """

    cid: int = 3
    path: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        whole = isinstance(self.cid, int) and not isinstance(self.cid, bool)
        if not whole or not 3 <= self.cid < 0xFFFFFFFF:
            raise ConfigError(
                f"cid cannot be {self.cid!r}",
                remedy="Give 3 to 4294967294: the others are reserved.",
            )
        if self.path is not None and not (
            isinstance(self.path, (str, os.PathLike)) and os.fspath(self.path)
        ):
            raise ConfigError(f"path cannot be {self.path!r}", remedy="Name a place for a socket.")

    def _plug(self, machine: Machine, port: int | None) -> int:
        path = None if self.path is None else os.fspath(self.path)
        return attach_vsock(machine, port, cid=self.cid, path=path)
