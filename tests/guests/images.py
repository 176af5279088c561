"""Damaged and foreign kernel images, made byte by byte."""

from __future__ import annotations

import struct

_BZIMAGE_SETUP = 1024


def with_machine(image: bytes, machine: int) -> bytes:
    """An ELF image that says it is for another machine (e_machine at offset 18)."""
    return image[:18] + struct.pack("<H", machine) + image[20:]


def arm64_image() -> bytes:
    """The header of an arm64 kernel: a jump, and "ARM\\x64" at offset 56."""
    return struct.pack("<IIQQQQQQ4sI", 0x14000010, 0, 0, 1 << 20, 0, 0, 0, 0, b"ARM\x64", 0) * 64


def bzimage(payload: bytes) -> bytes:
    """A bzImage of protocol 2.15 around ``payload`` that is not meant to be entered."""
    head = bytearray(_BZIMAGE_SETUP)
    head[0x1F1] = 1  # setup sectors after the first
    struct.pack_into("<I", head, 0x1F4, (len(payload) + 15) // 16)
    struct.pack_into("<H", head, 0x1FE, 0xAA55)
    struct.pack_into("<H4sH", head, 0x200, 0x66EB, b"HdrS", 0x020F)
    struct.pack_into("<B", head, 0x211, 1)  # loaded high
    struct.pack_into("<I", head, 0x214, 0x100000)
    struct.pack_into("<I", head, 0x22C, 0x7FFF_FFFF)
    struct.pack_into("<IBBHI", head, 0x230, 1 << 21, 1, 21, 0x03, 2047)
    struct.pack_into("<II", head, 0x248, 0, len(payload))
    struct.pack_into("<QI", head, 0x258, 0x100_0000, 1 << 24)
    return bytes(head) + payload
