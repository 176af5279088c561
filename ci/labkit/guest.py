"""What L1 is told about a run: the command with its surroundings, and settings."""

from __future__ import annotations

import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from .flavour import Flavour
from .paths import REPOSITORY, cache_dir

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Folders that are empty and writable in L1, whatever the host has in them.
_COVERED = (Path("/tmp"), Path("/run"), Path("/dev/shm"))


@dataclass(frozen=True)
class Command:
    """A command of the project and where it runs."""

    arguments: tuple[str, ...]
    cwd: Path
    out: Path
    venv: Path
    environment: tuple[tuple[str, str], ...] = ()


def environment(command: Command, flavour: Flavour) -> dict[str, str]:
    """The whole environment of the command in L1."""
    # The interpreter itself, not a version manager's wrapper that may be first in PATH.
    interpreter = Path(sys.base_prefix) / "bin"
    values = {
        "PATH": f"{command.venv / 'bin'}:{interpreter}:{_SYSTEM_PATH}",
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_ADDOPTS": f"-p no:cacheprovider {os.environ.get('PYTEST_ADDOPTS', '')}".strip(),
        # Not what `pyproject.toml` gives a test: a clock may run ahead of the work.
        "PYTEST_TIMEOUT": str(60 * flavour.time_factor),
        "VMLET_CACHE": str(cache_dir()),
        "VMLET_GUEST_CMDLINE": flavour.guest_cmdline,
        "VMLET_LAB": flavour.name,
        "VMLET_OUT": str(command.out),
        "VMLET_REQUIRE": ",".join(flavour.provides),
        "VMLET_TIME_FACTOR": str(flavour.time_factor),
    }
    if command.venv.exists():
        values["VIRTUAL_ENV"] = str(command.venv)
    return values | dict(command.environment)


def script(command: Command, flavour: Flavour) -> str:
    """A shell script that runs the command, with every word quoted."""
    lines = [
        f"export {name}={shlex.quote(value)}"
        for name, value in environment(command, flavour).items()
    ]
    lines.append(f"cd {shlex.quote(str(command.cwd))} || exit 126")
    lines.append(f"exec {shlex.join(command.arguments)}")
    return "\n".join(lines) + "\n"


def settings(command: Command, plugged: int, files: tuple[Path, ...] = ()) -> str:
    """Shell assignments for L1's init; `plugged` devices appear after it resumes.

    `files` are to be seen too, wherever they are.
    """
    values = {
        "LAB_TIME": str(int(time.time())),
        "LAB_PLUGGED": str(plugged),
        "LAB_OUT": str(command.out),
        "LAB_VISIBLE": "\n".join(str(path) for path in visible(command, files)),
    }
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def visible(command: Command, files: tuple[Path, ...] = ()) -> list[Path]:
    """Paths of the host below covered folders that the command needs to see."""
    wanted = {REPOSITORY, command.cwd, command.venv, cache_dir()}
    hidden = sorted(
        path
        for path in {*filter(Path.is_dir, wanted), *files}
        if any(c in path.parents for c in _COVERED)
    )
    return [path for path in hidden if not any(other in path.parents for other in hidden)]
