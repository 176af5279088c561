"""Guests of a few instructions, for tests of the Python face.

A guest is 32-bit code in GNU assembler syntax, started by PVH: flat protected mode without paging,
loaded at 1 MiB. `macros.inc` has the ports it talks to. It is assembled once and kept below
``target/guests``, so that a lab without an assembler finds it there; programs for Linux and disks
are kept there too.
"""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

_HERE = Path(__file__).parent
KEPT = _HERE.parent.parent / "target" / "guests"
_LOAD = 0x10_0000
_PVH_ENTRY = 18

#: Answers each byte with the next one, and counts at 0x200000 how often it looked.
ECHOES = """
1:  incl 0x200000
    mov $COM1 + 5, %dx
    in %dx, %al
    test $1, %al
    jz 1b
    mov $COM1, %dx
    in %dx, %al
    inc %al
    out %al, %dx
    jmp 1b
"""


def guest(code: str) -> bytes:
    """A PVH image that runs ``code``."""
    return elf(_made((_HERE / "macros.inc").read_text() + code + "\n", assemble))


def program(name: str) -> bytes:
    """The program of ``name.c`` beside this file, for a guest's Linux."""
    return _made((_HERE / f"{name}.c").read_text(), compiled)


def _made(source: str, make: Callable[[str], bytes]) -> bytes:
    kept = KEPT / hashlib.sha256(source.encode()).hexdigest()[:24]
    if kept.exists():
        return kept.read_bytes()
    made = make(source)
    try:
        KEPT.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}")
        partial.write_bytes(made)
        partial.rename(kept)
    except OSError:
        pass  # A read-only tree: it is made again next time.
    return made


def assemble(source: str) -> bytes:
    """Flat 32-bit code of ``source``."""
    with tempfile.TemporaryDirectory() as directory:
        text, code, blob = (Path(directory) / name for name in ("g.s", "g.o", "g.bin"))
        text.write_text(source)
        subprocess.run(["as", "--32", "-o", code, text], check=True)
        subprocess.run(["objcopy", "-O", "binary", "-j", ".text", code, blob], check=True)
        return blob.read_bytes()


def compiled(source: str) -> bytes:
    """A static program of ``source`` in C."""
    with tempfile.TemporaryDirectory() as directory:
        text, out = Path(directory) / "p.c", Path(directory) / "p"
        text.write_text(source)
        subprocess.run(["gcc", "-O2", "-static", "-pthread", "-o", out, text], check=True)
        return out.read_bytes()


def elf(code: bytes, entry: int = _LOAD, load: int = _LOAD) -> bytes:
    """A 32-bit ELF file with ``code`` at ``load`` and a PVH note that names ``entry``."""
    note = struct.pack("<III4sI", 4, 4, _PVH_ENTRY, b"Xen\0", entry)
    start = 52 + 2 * 32
    header = struct.pack(
        "<4s5B7xHHIIIIIHHHHHH",
        *(b"\x7fELF", 1, 1, 1, 0, 0, 2, 3, 1, entry, 52, 0, 0, 52, 32, 2, 0, 0, 0),
    )
    segments = struct.pack("<8I", 1, start, load, load, len(code), len(code), 7, 4096)
    segments += struct.pack("<8I", 4, start + len(code), 0, 0, len(note), len(note), 4, 4)
    return header + segments + code + note
