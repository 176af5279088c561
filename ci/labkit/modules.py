"""Kernel modules of an unpacked kernel package, in load order."""

from __future__ import annotations

import lzma
import re
import subprocess
import tempfile
from pathlib import Path

from .errors import LabError


def normalised(name: str) -> str:
    """A module's name as the kernel compares it: dashes are underscores."""
    return name.replace("-", "_")


def module_name(path: str) -> str:
    """The module's name from its file name."""
    return normalised(path.rsplit("/", 1)[-1].partition(".ko")[0])


def load_order(dependencies: str, wanted: tuple[str, ...], builtin: str = "") -> list[str]:
    """Files to load for the `wanted` modules, each after what it needs.

    `dependencies` and `builtin` are the texts of ``modules.dep`` and
    ``modules.builtin``; what the kernel has built in is left out.
    """
    needs: dict[str, tuple[str, list[str]]] = {}
    for line in dependencies.splitlines():
        file, _, rest = line.partition(":")
        needs[module_name(file)] = (file, rest.split())
    present = {module_name(line) for line in builtin.splitlines()}
    order: list[str] = []
    for name in map(normalised, wanted):
        if name in needs:
            file, before = needs[name]
            # modules.dep lists dependencies with the innermost last.
            order += [f for f in [*reversed(before), file] if f not in order]
        elif name not in present:
            raise LabError(f"the kernel has no module {name}")
    return order


def read_stripped(path: Path, options: tuple[str, ...] = ("--strip-debug",)) -> bytes:
    """A module decompressed and without its debug sections, or what else `options` of strip say."""
    content = path.read_bytes()
    if path.suffix == ".xz":
        content = lzma.decompress(content)
    elif not re.fullmatch(r"\.ko", path.suffix):
        raise LabError(f"{path.name}: unknown compression of a module")
    with tempfile.NamedTemporaryFile(suffix=".ko") as file:
        file.write(content)
        file.flush()
        subprocess.run(["strip", *options, file.name], check=True)
        return Path(file.name).read_bytes()
