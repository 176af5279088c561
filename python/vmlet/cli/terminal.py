"""The user's terminal while it is the guest's: raw, with one key that stays ours."""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import tty
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn

ESCAPE = 0x1D
"""Ctrl-]."""
HINT = "escape: Ctrl-] then q quits, p pauses/resumes, r registers, ? help"
HELP = "Ctrl-] then q: quit, p: pause or resume, r: registers, ?: this help, Ctrl-]: send Ctrl-]"


@dataclass(slots=True)
class EscapeParser:
    """Tells what the user types to the guest from what is meant for us."""

    _pending: bool = field(default=False, init=False)

    def feed(self, data: bytes) -> Iterator[bytes | str]:
        """Gives bytes for the guest and commands of one character, in order."""
        plain = bytearray()
        for byte in data:
            if self._pending:
                self._pending = False
                if byte == ESCAPE:
                    plain.append(byte)
                    continue
                if plain:
                    yield bytes(plain)
                    plain.clear()
                yield chr(byte)
            elif byte == ESCAPE:
                self._pending = True
            else:
                plain.append(byte)
        if plain:
            yield bytes(plain)


def is_ours(descriptor: int) -> bool:
    """Whether it is a terminal that this process may change: not one of the background."""
    try:
        return os.isatty(descriptor) and os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return False


@contextlib.contextmanager
def raw(descriptor: int) -> Iterator[None]:
    """Gives every key to the reader; puts the terminal back whatever happens.

    A shell changes the terminal while it holds a stopped process, so it is made raw again then.
    """
    before = termios.tcgetattr(descriptor)

    def again(_number: int, _frame: FrameType | None) -> None:
        # It comes with SIGHUP too, when the terminal has gone.
        with contextlib.suppress(termios.error):
            tty.setraw(descriptor, termios.TCSANOW)

    previous = signal.signal(signal.SIGCONT, again)
    try:
        tty.setraw(descriptor, termios.TCSANOW)
        yield
    finally:
        signal.signal(signal.SIGCONT, previous)
        # One that hung up cannot be put back, and must not hide why we are here.
        with contextlib.suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Turns SIGTERM and SIGHUP into SystemExit, so that what was opened is closed."""
    previous: dict[signal.Signals, Any] = {}

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        # A second one must not interrupt the clean-up of the first.
        for other in previous:
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number)

    try:
        for one in (signal.SIGTERM, signal.SIGHUP):
            previous[one] = signal.signal(one, end)
        yield
    finally:
        for one, handler in previous.items():
            signal.signal(one, handler)
