"""A process that measures on demand: a line in, lines of figures out.

Each side times itself with CLOCK_MONOTONIC, so that the pipe is in no figure.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from ..process import CommandError, Words


class StoodStillError(CommandError):
    """A side has not answered within the time that is far more than it takes, and was ended."""


class Worker:
    """A side of a benchmark, started once and asked many times."""

    def __init__(self, command: Words) -> None:
        """Start it."""
        self._name = Path(command[0]).name
        self._command = [str(word) for word in command]
        self._process = self._started()
        self._limit: float | None = None

    def _started(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def start_again(self) -> None:
        """Start it once more after it has ended."""
        self._close()
        self._process = self._started()

    def ask(self, line: str, answers: int, *, within: float | None = None) -> list[list[int]]:
        """Send a line; return that many lines of whole numbers.

        Raises StoodStillError if they have not come ``within`` seconds: the process and what it
        has started are killed, and `start_again` makes it new.
        """
        if within is None:
            return self._ask(line, answers)
        ender = threading.Timer(within, self._kill, [within])
        ender.start()
        try:
            return self._ask(line, answers)
        finally:
            ender.cancel()

    def _kill(self, limit: float) -> None:
        self._limit = limit
        os.killpg(self._process.pid, signal.SIGKILL)

    def _ask(self, line: str, answers: int) -> list[list[int]]:
        source, sink = self._process.stdout, self._process.stdin
        assert source is not None
        assert sink is not None
        try:
            sink.write(f"{line}\n")
            sink.flush()
        except BrokenPipeError as error:
            raise self._ended() from error
        return [self._numbers(source.readline()) for _ in range(answers)]

    def _numbers(self, line: str) -> list[int]:
        if not line:
            raise self._ended()
        return [int(word) for word in line.split()]

    def _ended(self) -> CommandError:
        limit, self._limit = self._limit, None
        if limit is not None:
            self._process.wait()
            return StoodStillError(f"{self._name} stood still for {limit:.0f} s")
        return CommandError(f"{self._name} ended with {self._process.wait()}; see the lines above")

    def __enter__(self) -> Self:
        """Nothing more."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it: with its input closed it leaves by itself."""
        self._close()

    def _close(self) -> None:
        if self._process.stdin:
            # A line that nobody has read.
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
