"""QEMU as the release itself has it, unpacked beside the newer one of its backports.

QEMU 10.0's model of AMD-Vi passes all DMA on untranslated; 7.2 translates.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from .apt import Apt
from .errors import LabError
from .packages import QEMU
from .paths import cache_dir, locked

_BELOW = "1:8"
_PACKAGES = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")
# Where it looks for firmware.
_FOLDERS = ("usr/share/qemu", "usr/share/seabios")


def command(*, refresh: bool = False) -> tuple[str, ...]:
    """The emulator and where its firmware is; unpacked where it is not there."""
    folder = cache_dir() / "older-qemu"
    with locked(folder / "lock"):
        tree = next(folder.glob("[0-9]*/"), None)
        if refresh or tree is None:
            tree = _unpacked(folder)
    places = (word for name in _FOLDERS for word in ("-L", str(tree / name)))
    return (str(tree / "usr/bin" / QEMU), *places)


def _unpacked(folder: Path) -> Path:
    packages = [Apt().newest(name, below=_BELOW) for name in _PACKAGES]
    version = packages[0][1].partition(":")[2]
    target = folder / version
    if not target.exists():
        Apt().unpack_all(packages, target, finish=_finish)
        for old in folder.glob("[0-9]*/"):
            if old != target:
                shutil.rmtree(old)
    return target


def _finish(tree: Path) -> None:
    """Its libraries are those of the newer one, if these are all there."""
    program = [str(tree / "usr/bin" / QEMU), "--version"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"the older {QEMU} does not start here: {done.stderr.strip()}")
