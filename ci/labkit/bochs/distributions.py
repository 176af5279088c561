"""Which files of a virtual environment belong to a distribution and to what it requires."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..modules import normalised


def requirements(metadata: str) -> list[str]:
    """Names that a METADATA file requires always: neither for an extra nor by a marker's choice."""
    names = []
    for line in metadata.splitlines():
        if not line:
            break
        key, _, value = line.partition(":")
        wanted, _, marker = value.partition(";")
        found = re.match(r"\s*([A-Za-z0-9._-]+)", wanted)
        if key == "Requires-Dist" and found and "extra" not in marker:
            names.append(_canonical(found[1]))
    return names


def recorded(record: str) -> list[str]:
    """Paths in a RECORD file, relative to the folder that holds the distributions."""
    return [row[0] for row in csv.reader(record.splitlines()) if row]


def closure(packages: Path, names: tuple[str, ...]) -> list[Path]:
    """Folders of metadata for the named distributions and what they require.

    One that is not installed is left out: a marker that does not hold here asks for none.
    """
    installed = {
        _canonical(folder.name.partition("-")[0]): folder
        for folder in sorted(packages.glob("*.dist-info"))
    }
    waiting = [_canonical(name) for name in names]
    found: dict[str, Path] = {}
    while waiting:
        name = waiting.pop()
        if name in installed and name not in found:
            found[name] = installed[name]
            waiting += requirements((installed[name] / "METADATA").read_text())
    return sorted(found.values())


def files(packages: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """Every file of the named distributions and what they require."""
    for folder in closure(packages, names):
        for name in recorded((folder / "RECORD").read_text()):
            # Scripts are recorded relative to the packages: ../../../bin/name.
            path = Path(os.path.normpath(packages / name))
            if path.is_file():
                yield path


def _canonical(name: str) -> str:
    return normalised(re.sub(r"[-_.]+", "-", name).lower())
