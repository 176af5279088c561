"""What L1 sends through the debug port: output, files and the status, in one ordered stream.

A frame is the mark 0x1E, a letter for its kind, four hexadecimal digits of
length, and that many bytes.  What stands outside of frames is the emulator's
own talk.  `relay.c` is the writer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

STDOUT = b"o"
STDERR = b"e"
FILES = b"f"
STATUS = b"x"
_KINDS = STDOUT + STDERR + FILES + STATUS

_MARK = 0x1E
_HEADER = 6  # bytes


@dataclass
class Demultiplexer:
    """Takes the stream apart, however it is cut into pieces."""

    outside: bytearray = field(default_factory=bytearray)
    _rest: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield kind and payload of each frame that `data` completes."""
        self._rest += data
        while self._rest:
            if self._rest[0] != _MARK:
                self._leave_out(self._to_mark())
                continue
            if len(self._rest) < _HEADER:
                return
            length = _length(bytes(self._rest[:_HEADER]))
            if length is None:
                self._leave_out(1)
                continue
            if len(self._rest) < _HEADER + length:
                return
            kind = bytes(self._rest[1:2])
            payload = bytes(self._rest[_HEADER : _HEADER + length])
            del self._rest[: _HEADER + length]
            yield kind, payload

    def _to_mark(self) -> int:
        at = self._rest.find(_MARK)
        return len(self._rest) if at < 0 else at

    def _leave_out(self, count: int) -> None:
        self.outside += self._rest[:count]
        del self._rest[:count]


def _length(header: bytes) -> int | None:
    """The length of the payload, or None when this is no header."""
    if header[1:2] not in _KINDS:
        return None
    try:
        return int(header[2:_HEADER].decode("latin1"), 16)
    except ValueError:
        return None


def status_of(payload: bytes) -> int | None:
    """The command's status in a status frame, None when it holds none."""
    text = payload.strip()
    return int(text) if text.isdigit() and int(text) < 256 else None
