"""Shows how far a long step is: a bar on a terminal, a line a step elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType
from typing import TextIO

_BAR = 24
_INTERVAL = 0.1
_ERASE = "\r\x1b[K"


class ProgressDisplay:
    """Is called with what goes on and the share done (0 to 1, None: not known)."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = sys.stderr if out is None else out
        self._terminal = self._out.isatty()
        self._what: str | None = None
        self._shown = 0.0

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._terminal:
            self._out.write(_ERASE)
            self._out.flush()

    def __call__(self, what: str, part: float | None) -> None:
        new = what != self._what
        self._what = what
        if not self._terminal:
            if new:
                print(f"vmlet: {what}", file=self._out, flush=True)
            return
        now = time.monotonic()
        if new or now - self._shown >= _INTERVAL:
            self._shown = now
            width = shutil.get_terminal_size().columns
            self._out.write(_ERASE + bar(what, part)[: max(width - 1, 1)])
            self._out.flush()


def bar(what: str, part: float | None) -> str:
    """One line of the display."""
    if part is None:
        return f"[{'.' * _BAR}]      {what}"
    full = round(min(max(part, 0.0), 1.0) * _BAR)
    return f"[{'#' * full}{'-' * (_BAR - full)}] {part:4.0%} {what}"
