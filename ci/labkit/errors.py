"""What the lab raises and how it tells its user what it does."""

from __future__ import annotations

import sys


class LabError(Exception):
    """The lab itself failed, not the command that it ran."""


def progress(text: str) -> None:
    """Say on stderr what takes long."""
    print(f"lab: {text}", file=sys.stderr, flush=True)
