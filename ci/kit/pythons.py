"""The interpreters that the wheel must work on, and what is tried on each."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

VERSIONS = ("3.11", "3.12", "3.13")


def _candidates(version: str) -> Iterator[str]:
    roots = Path.home() / ".pyenv" / "versions"
    for folder in sorted(roots.glob(f"{version}.*"), reverse=True):
        yield str(folder / "bin" / f"python{version}")
    on_path = shutil.which(f"python{version}")
    if on_path:
        yield on_path


def find(version: str) -> str | None:
    """A CPython of this version that starts; a version manager's wrapper may not."""
    ask = "import sys, venv; print('%d.%d' % sys.version_info[:2], sys.implementation.name)"
    for program in _candidates(version):
        try:
            said = subprocess.run(
                [program, "-c", ask], capture_output=True, text=True, check=False, timeout=60
            )
        except OSError:
            continue
        if said.returncode == 0 and said.stdout.split() == [version, "cpython"]:
            return program
    return None
