"""Guests of a few instructions as kernels: ELF files with the note of the PVH boot protocol."""

from __future__ import annotations

import struct

ENTRY = 0x100000


def elf(code: bytes, entry: int = ENTRY) -> bytes:
    """An ELF file with the code at `entry` and PVH's note (XEN_ELFNOTE_PHYS32_ENTRY)."""
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", entry)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, entry, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    at = 64 + 2 * 56
    load = struct.pack("<IIQQQQQQ", 1, 5, at, entry, entry, len(code), len(code), 4096)
    at += len(code)
    noted = struct.pack("<IIQQQQQQ", 4, 4, at, 0, 0, len(note), len(note), 4)
    return ident + header + load + noted + code + note
