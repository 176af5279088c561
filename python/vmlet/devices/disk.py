"""Disks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vmlet._core import attach_disk
from vmlet.devices.model import Model
from vmlet.errors import ConfigError

if TYPE_CHECKING:
    from vmlet._core import Machine

__all__ = ["Disk"]


@dataclass(frozen=True)
class Disk(Model):
    """A disk (virtio-blk), which Linux calls /dev/vda, /dev/vdb and so on.

    Args:
        path: the image: a regular file or a block device. One that can be written belongs to one
            VM at a time.
        readonly: the guest cannot write.
        overlay: what the guest writes is thrown away when the VM closes; until then it takes room
            in the folder of temporary files (TMPDIR).
        format: how the image's bytes are laid out. It is never guessed. A qcow2 image stands for
            itself: what it may lie on is not opened.
        direct: past the host's page cache (O_DIRECT); raw images only.
        queues: request queues, best as many as the VM has vCPUs.
        serial: what the guest reads as the disk's serial number, 20 ASCII characters at most.
    """

    path: str | os.PathLike[str]
    readonly: bool = False
    overlay: bool = False
    format: Literal["raw", "qcow2"] = "raw"
    direct: bool = False
    queues: int = 1
    serial: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.path, (str, os.PathLike)) or not os.fspath(self.path):
            raise ConfigError(f"path cannot be {self.path!r}", remedy="Name an image.")
        for name in ("readonly", "overlay", "direct"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ConfigError(f"{name} cannot be {value!r}", remedy="Give True or False.")
        if self.format not in ("raw", "qcow2"):
            raise ConfigError(f"format cannot be {self.format!r}", remedy="Give 'raw' or 'qcow2'.")
        whole = isinstance(self.queues, int) and not isinstance(self.queues, bool)
        if not whole or not 1 <= self.queues <= 64:
            raise ConfigError(f"queues cannot be {self.queues!r}", remedy="Give 1 to 64 of them.")
        if self.serial is not None and not isinstance(self.serial, str):
            raise ConfigError(f"serial cannot be {self.serial!r}", remedy="Give text.")

    def _plug(self, machine: Machine, port: int | None) -> int:
        return attach_disk(
            machine,
            port,
            path=os.fspath(self.path),
            readonly=self.readonly,
            overlay=self.overlay,
            format=self.format,
            direct=self.direct,
            queues=self.queues,
            serial=self.serial or "",
        )
