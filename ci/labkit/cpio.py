"""Writing a "newc" cpio archive, the format of an initial file system."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field


@dataclass
class Archive:
    """An archive in memory; the same calls give the same bytes."""

    _parts: list[bytes] = field(default_factory=list)
    _inode: int = 0

    def directory(self, name: str) -> None:
        """Add a directory."""
        self._entry(name, stat.S_IFDIR | 0o755, b"")

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._entry(name, stat.S_IFREG | mode, content)

    def character_device(self, name: str, major: int, minor: int) -> None:
        """Add a device node, such as the console that the kernel opens for init."""
        self._entry(name, stat.S_IFCHR | 0o600, b"", (major, minor))

    def finish(self) -> bytes:
        """The whole archive with its trailer."""
        self._inode = -1
        self._entry("TRAILER!!!", 0, b"")
        return b"".join(self._parts)

    def _entry(
        self, name: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        path = name.encode() + b"\0"
        # inode mode uid gid nlink mtime size devmajor devminor rdevmajor rdevminor namesize check
        numbers = [self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(path), 0]
        header = b"070701" + b"".join(b"%08X" % number for number in numbers)
        self._parts.append(_padded(header + path))
        self._parts.append(_padded(content))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
