"""The guest's console."""

from __future__ import annotations

import time

from vmlet._core import Machine
from vmlet._core import Terminal as _Port
from vmlet.errors import ClosedError, ConfigError, GuestError, TimeoutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Generator, Iterator

#: What was printed last, shown when something expected did not come.
_SHOWN = 400


class Console:
    """What the guest prints and reads on its first serial port.

    Output is kept until it is read, the newest ``console_limit`` bytes of it; `dropped` counts what
    was lost. One reader at a time.

    >>> import vmlet
    >>> vm = vmlet.VM(kernel="vmlinuz", initramfs="initrd.cpio")  # doctest: +SKIP
    >>> vm.start(); vm.console.expect("login:").group()  # doctest: +SKIP
    b'login:'
    """

    def __init__(self, machine: Machine, limit: int, port: _Port | None = None) -> None:
        self._machine = machine
        #: Where the bytes come from; the machine stands for its serial port.
        self._port = machine if port is None else port
        self._limit = limit
        self._unread = b""
        self._lost = 0

    @property
    def dropped(self) -> int:
        """Bytes lost because nobody read them in time."""
        return self._port.console_dropped + self._lost

    def write(self, data: bytes | str) -> int:
        """Types ``data``; how many bytes were taken (all, unless the guest reads nothing)."""
        return self._port.console_write(data.encode() if isinstance(data, str) else bytes(data))

    def read(self, limit: int | None = None, timeout: float | None = 0) -> bytes:
        """What came since the last read, at most ``limit`` bytes; empty when nothing came.

        Waits up to ``timeout`` seconds (None: for ever) for the first byte. What a guest printed
        can still be read when its VM is closed; after that, `ClosedError`.
        """
        if self._unread:
            count = len(self._unread) if limit is None else limit
            data, self._unread = self._unread[:count], self._unread[count:]
            return data
        return self._receive(limit, timeout)

    def expect(
        self, pattern: str | bytes | re.Pattern[bytes], timeout: float | None = 10
    ) -> re.Match[bytes]:
        """Waits until ``pattern`` is printed; consumes everything up to its end.

        Text and bytes are looked for as they are; a compiled pattern of bytes is searched in all
        that is unread, at most ``console_limit`` bytes. Raises `TimeoutError` after ``timeout``
        seconds (None: never), `GuestError` when the guest's run ends first; in both cases nothing
        is consumed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        search = self._expecting(pattern)
        more = next(search)
        while isinstance(more, str):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise self._not_printed(more, timeout)
            more = search.send(self._receive(None, left))
        return more

    def _expecting(
        self, pattern: str | bytes | re.Pattern[bytes]
    ) -> Generator[str | re.Match[bytes], bytes, None]:
        """Gives what it looks for each time it needs more output, and the match in the end."""
        search, tail = _compiled(pattern)
        start = 0
        while True:
            match = search.search(self._unread, start)
            if match is not None:
                self._unread = self._unread[match.end() :]
                yield match
                return
            start = 0 if tail is None else max(0, len(self._unread) - tail)
            data = yield repr(search.pattern)
            if not data and self._port.console_is_drained():
                raise self._ended(f"{search.pattern!r} was printed")
            start = max(0, start - self._keep(data))

    def _not_printed(self, pattern: str, timeout: float | None) -> TimeoutError:
        return TimeoutError(f"{pattern} was not printed within {timeout} s; {self._tail()}")

    def lines(self, timeout: float | None = None) -> Iterator[str]:
        """Lines as they come, without their ends, until the guest's run ends.

        ``timeout`` limits the wait for each line; `TimeoutError` after that.
        """
        while True:
            line = self._line()
            if line is not None:
                yield line
                continue
            data = self._port.console_read(None, timeout)
            if data:
                self._keep(data)
            elif self._port.console_is_drained():
                yield from self._last_line()
                return
            else:
                raise TimeoutError(f"no line was printed within {timeout} s")

    def _line(self) -> str | None:
        line, found, rest = self._unread.partition(b"\n")
        if not found:
            return None
        self._unread = rest
        return line.decode(errors="replace").rstrip("\r")

    def _last_line(self) -> Iterator[str]:
        """What has no end yet, when no more will come."""
        if self._unread:
            yield self.read().decode(errors="replace")

    def __iter__(self) -> Iterator[str]:
        return self.lines()

    def _receive(self, limit: int | None, timeout: float | None) -> bytes:
        data = self._port.console_read(limit, timeout)
        if not data and not self._unread and self._machine.state == "closed":
            raise ClosedError(
                "the VM is closed and its console has been read", remedy="Make a new VM."
            )
        return data

    def _keep(self, data: bytes) -> int:
        """Puts ``data`` behind what is unread; how many of the oldest bytes had to go."""
        excess = max(0, len(self._unread) + len(data) - self._limit)
        self._unread = (self._unread + data)[excess:]
        self._lost += excess
        return excess

    def _ended(self, awaited: str) -> GuestError:
        """The run has ended before what was awaited."""
        from vmlet.events import event_of

        found = self._machine.wait(0)
        end = None if found is None else event_of(*found)
        instruction = None if end is None else end.instruction
        how = "" if end is None else f" by {end}"
        if instruction is not None:
            how = f" by an instruction the engine lacks, {instruction},"
        remedy = None if end is None else end.remedy
        return GuestError(
            f"the guest's run ended{how} before {awaited}; {self._tail()}",
            remedy=remedy or "vm.wait() gives how it ended.",
            instruction=instruction,
        )

    def _tail(self) -> str:
        return f"the last output is {self._unread[-_SHOWN:]!r}"


class Terminal(Console):
    """What the guest prints and reads on /dev/hvc0, its `vmlet.VirtioConsole`."""

    def __init__(self, machine: Machine, limit: int) -> None:
        self._window = _Port(machine)
        super().__init__(machine, limit, self._window)

    def resize(self, columns: int, rows: int) -> None:
        """Tells the guest how large the window is; zeros: not known."""
        check_window(columns, rows)
        self._window.resize(columns, rows)


def check_window(columns: object, rows: object) -> None:
    """Refuses a window's size that cannot be."""
    for what, number in (("columns", columns), ("rows", rows)):
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= 0xFFFF:
            raise ConfigError(f"{what} cannot be {number!r}", remedy="Give 0 to 65535.")


def _compiled(
    pattern: str | bytes | re.Pattern[bytes],
) -> tuple[re.Pattern[bytes], int | None]:
    """The pattern, and how much of what was searched must be searched again (None: all)."""
    import re

    if isinstance(pattern, str):
        pattern = pattern.encode()
    if isinstance(pattern, bytes):
        return re.compile(re.escape(pattern)), max(0, len(pattern) - 1)
    if not isinstance(pattern, re.Pattern) or not isinstance(pattern.pattern, bytes):
        raise TypeError("give text, bytes, or a compiled pattern of bytes")
    return pattern, None
