"""A process that measures on demand: a line in, lines of figures out.

Each side times itself with CLOCK_MONOTONIC, so that the pipe is in no figure.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from ..process import CommandError, Words


class Worker:
    """A side of a benchmark, started once and asked many times."""

    def __init__(self, command: Words) -> None:
        """Start it."""
        self._name = Path(command[0]).name
        self._process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, line: str, answers: int) -> list[list[int]]:
        """Send a line; return that many lines of whole numbers."""
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
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
