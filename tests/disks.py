"""Images of disks for tests, and a guest's shell."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from pathlib import Path

import conftest
from conftest import initramfs, lacks, limit
from guests import roots

#: What a Debian cloud kernel needs for an ext4 file system on a disk.
MODULES = ("virtio_pci", "virtio_blk", "ext4")


def ext4(path: Path, folder: Path, size: str = "64M") -> Path:
    """An ext4 file system with the files of ``folder`` at ``path``."""
    return _made(path, lambda: roots.make_ext4(path, folder, size, limit(60)))


def debian(path: Path, root: Path) -> Path:
    """The Debian ``root`` as a disk at ``path``."""
    return _made(path, lambda: roots.copy(root, path, limit(60)))


def _made(path: Path, make: Callable[[], None]) -> Path:
    try:
        make()
    except FileNotFoundError:
        lacks("mke2fs", "mke2fs is not here: install e2fsprogs")
    return path


def blank(path: Path, size: int = 16 << 20) -> Path:
    """An image of zeros."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def qcow2(path: Path, size: int = 16 << 20) -> Path:
    """A qcow2 image without any data: a header, counts of references, a table."""
    cluster = 1 << 16
    counts, block, table = cluster, 2 * cluster, 3 * cluster
    head = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 0, 0, 16, size, 0, 1, table, counts, 1, 0, 0
    )
    with path.open("wb") as file:
        file.write(head)
        file.seek(counts)
        file.write(struct.pack(">Q", block))
        file.seek(block)
        file.write(struct.pack(">4H", 1, 1, 1, 1))
        file.truncate(4 * cluster)
    return path


def with_disks(kernel: str, script: str = "") -> bytes:
    """A root of busybox whose kernel finds disks; ``script`` runs before the shell."""
    return initramfs(script, modules=MODULES, kernel=kernel)


#: What a line prints in the shell of a VM.
command = functools.partial(conftest.command, timeout=30)
