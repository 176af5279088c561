"""The virtual environment with the pinned tools."""

from __future__ import annotations

import sys
from pathlib import Path

from .paths import LOGS, REQUIREMENTS, VENV
from .process import Words, must, progress


def tool(name: str) -> Path:
    """A program of the environment."""
    return VENV / "bin" / name


def ensure() -> None:
    """Make the environment and install what is pinned, unless both are as wanted."""
    stamp = VENV / ".requirements"
    wanted = f"{sys.version}\n{REQUIREMENTS.read_text()}"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    progress("build: installing the pinned tools into target/venv")
    VENV.parent.mkdir(exist_ok=True)
    must([sys.executable, "-m", "venv", "--clear", VENV], "python3 -m venv", LOGS / "venv.log")
    pip: Words = [tool("python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    must([*pip, "--requirement", REQUIREMENTS], "installing the tools", LOGS / "tools.log")
    stamp.write_text(wanted)
