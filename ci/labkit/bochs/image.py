"""L1's root image, an ext4 file system made without root, and the cache of such images."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import LabError, progress
from ..paths import locked, locked_if_free
from . import programs
from .config import MIB
from .tree import Tree

_KEPT = 4  # images, 200 MB each, before the one used longest ago goes
_UNIT = 16 * MIB  # memory devices begin and end at multiples of this
# Inodes, group descriptors and directories beside the contents.
_SPARE = 16 * MIB


@contextmanager
def packed(tree: Tree) -> Iterator[Path]:
    """Yield the image of the tree, made first if there is none; it stays while in context."""
    images = programs.folder() / "roots"
    images.mkdir(exist_ok=True)
    image = images / f"{tree.digest()[:16]}.ext4"
    lock = image.with_suffix(".lock")
    if not image.exists():
        with locked(lock):
            if not image.exists():
                _drop_oldest(images)
                _pack(tree, image)
    with locked(lock, shared=True):
        image.touch()
        yield image


def image_size(content: int) -> int:
    """Bytes of an image for so many bytes of content."""
    return -(-(content + content // 32 + _SPARE) // _UNIT) * _UNIT


def _pack(tree: Tree, image: Path) -> None:
    begin = time.monotonic()
    temporary = image.with_suffix(".new")
    try:
        with tempfile.TemporaryDirectory(prefix="root-", dir=image.parent) as folder:
            tree.write_out(Path(folder))
            with temporary.open("wb") as file:
                file.truncate(image_size(tree.size()))
            command = ["/usr/sbin/mke2fs", "-q", "-t", "ext4", "-O", "^has_journal,^metadata_csum"]
            command += ["-m", "0", "-b", "4096", "-E", "root_owner=0:0", "-d", folder]
            done = subprocess.run([*command, str(temporary)], capture_output=True, text=True,
                                  check=False)  # fmt: skip
        if done.returncode:
            raise LabError(f"mke2fs could not make L1's root: {done.stderr}")
        temporary.rename(image)
    finally:
        temporary.unlink(missing_ok=True)
    size = image.stat().st_size / 1e6
    progress(f"packed L1's root, {size:.0f} MB, in {time.monotonic() - begin:.1f} s")


def _drop_oldest(images: Path) -> None:
    ordered = sorted(images.glob("*.ext4"), key=lambda path: path.stat().st_mtime)
    for image in ordered[: max(0, len(ordered) - _KEPT + 1)]:
        with locked_if_free(image.with_suffix(".lock")) as free:
            if free:
                image.unlink(missing_ok=True)
                image.with_suffix(".lock").unlink(missing_ok=True)
