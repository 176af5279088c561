"""The log of the kernel's dm-log-writes target: every write of a block device, in order.

Source: Linux, Documentation/admin-guide/device-mapper/log-writes.rst, and the structures of
drivers/md/dm-log-writes.c. The first sector is the superblock; each entry is a sector that names
what was written, followed by the data.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")


@dataclass(frozen=True)
class Entry:
    """One write, flush, discard or mark."""

    #: First byte on the device.
    offset: int
    #: What was written there; empty for a flush, a discard or a mark.
    data: bytes
    #: Bytes discarded.
    discarded: int
    flags: int
    #: The text of a mark.
    mark: str = ""

    @property
    def settles(self) -> bool:
        """Whether the device promises at this point that all before is there."""
        return bool(self.flags & (FLUSH | FUA))


def entries(log: BinaryIO) -> Iterator[Entry]:
    """The entries of ``log``, oldest first; `ValueError` where it is no log."""
    magic, version, count, sector = _SUPER.unpack(_exactly(log, _SUPER.size))
    if (magic, version) != (MAGIC, 1):
        raise ValueError(f"no log of dm-log-writes: magic {magic:#x}, version {version}")
    log.seek(sector)
    for _ in range(count):
        head = _exactly(log, sector)
        first, sectors, flags, length = _ENTRY.unpack(head[: _ENTRY.size])
        text = head[_ENTRY.size : _ENTRY.size + length] if flags & MARK else b""
        size = sectors * sector
        data = b"" if flags & (DISCARD | MARK) else _exactly(log, size)
        yield Entry(
            offset=first * sector,
            data=data,
            discarded=size if flags & DISCARD else 0,
            flags=flags,
            mark=text.rstrip(b"\0").decode(),
        )


def apply(entry: Entry, image: bytearray) -> None:
    """Does to ``image`` what ``entry`` did to the device."""
    if entry.discarded:
        image[entry.offset : entry.offset + entry.discarded] = bytes(entry.discarded)
    else:
        image[entry.offset : entry.offset + len(entry.data)] = entry.data


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ValueError(f"the log ends after {len(data)} of {size} bytes")
    return data
