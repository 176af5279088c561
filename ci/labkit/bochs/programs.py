"""Small programs that the lab compiles, and other programs without their symbols."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from ..errors import LabError
from ..paths import cache_dir, locked

_HERE = Path(__file__).resolve().parent
_FLAGS = {
    "relay.c": ("-O2", "-static", "-s", "-Wall", "-Wextra"),
    "chunked_read.c": ("-O2", "-shared", "-fPIC", "-Wall", "-Wextra"),
    "boot.S": (
        *("-m32", "-nostdlib", "-ffreestanding", "-fno-pie", "-no-pie"),
        "-Wl,-Ttext=0x7c00,--oformat=binary,--build-id=none",
    ),
}


def folder() -> Path:
    """The cache of this part of the lab."""
    path = cache_dir() / "bochs"
    path.mkdir(exist_ok=True)
    return path


def compiled(name: str, *definitions: str) -> Path:
    """The program made of a source file beside this one."""
    flags = (*_FLAGS[name], *(f"-D{definition}" for definition in definitions))
    source = _HERE / name
    digest = hashlib.sha256(source.read_bytes() + " ".join(flags).encode()).hexdigest()[:16]
    target = folder() / f"{source.stem}-{digest}"
    if not target.exists():
        temporary = target.with_suffix(".new")
        with locked(folder() / "compile.lock"):
            _run(["gcc", *flags, "-o", str(temporary), str(source)])
            temporary.rename(target)
    return target


def is_elf(path: Path) -> bool:
    """Whether a file is a program, a library or an object."""
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def stripped(path: Path) -> Path:
    """A program without symbols, other files as they are."""
    if not is_elf(path):
        return path
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    target = folder() / "stripped" / digest
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        with locked(folder() / "compile.lock"):
            for old in sorted(target.parent.iterdir(), key=lambda p: p.stat().st_mtime)[:-8]:
                old.unlink()
            temporary = target.with_suffix(".new")
            _run(["strip", "-o", str(temporary), str(path)])
            temporary.rename(target)
    return target


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(command)}:\n{done.stderr}")
