"""Tables of a Markdown file."""

from __future__ import annotations

import re

_NAME = re.compile(r"`([^`]+)`")


def table(text: str, heading: str) -> list[list[str]]:
    """The body rows of the first table below the heading, as stripped cells."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("#") and line.lstrip("# ").strip() == heading:
            break
    else:
        raise ValueError(f"there is no heading {heading!r}")
    rows: list[list[str]] = []
    for line in lines:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif rows or line.startswith("#"):
            break
    if len(rows) < 3:
        raise ValueError(f"there is no table below the heading {heading!r}")
    return rows[2:]


def names(cell: str) -> list[str]:
    """What stands in backticks."""
    return _NAME.findall(cell)
