"""How an error looks on the command line."""

from __future__ import annotations

import sys

from vmlet.errors import Error

ERROR = 2
"""The exit status of a command that could not do its work."""


def describe(error: Error) -> dict[str, str | None]:
    """An error for JSON."""
    return {"type": type(error).__name__, "message": error.message, "remedy": error.remedy}


def report(message: str, remedy: str | None) -> None:
    """Prints an error and what to do about it on stderr."""
    print(f"vmlet: error: {message}", file=sys.stderr)
    if remedy:
        print(f"  remedy: {remedy}", file=sys.stderr)
