"""Disks with a Debian root, for guests that start from one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from . import KEPT

SIZE = "256M"
#: Bytes.
BLOCK = 4096


def make_ext4(image: Path, folder: Path, size: str, timeout: float) -> None:
    """Makes an ext4 file system with the files of ``folder``. `FileNotFoundError`: no mke2fs."""
    program = shutil.which("mke2fs") or "/sbin/mke2fs"
    image.touch()
    command = [program, "-q", "-t", "ext4", "-b", str(BLOCK), "-d", str(folder), str(image), size]
    subprocess.run(command, check=True, timeout=timeout)


def kept(root: Path, timeout: float = 60) -> Path:
    """The disk of ``root``, which half a minute of an emulated host would go into. It is made once
    and kept, as long as a root of that name."""
    image = KEPT / f"{root.name}.ext4"
    if not image.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        partial = image.with_suffix(f".{os.getpid()}")
        try:
            make_ext4(partial, root, SIZE, timeout)
            partial.rename(image)
        finally:
            partial.unlink(missing_ok=True)
    return image


def copy(root: Path, image: Path, timeout: float) -> None:
    """Makes ``image`` a disk of ``root``."""
    try:
        source = kept(root, timeout)
    except OSError:  # A read-only tree.
        make_ext4(image, root, SIZE, timeout)
    else:
        command = ["cp", "--sparse=always", str(source), str(image)]
        subprocess.run(command, check=True, timeout=timeout)
