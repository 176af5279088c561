"""The virtual environment with the pinned tools."""

from __future__ import annotations

import sys
from pathlib import Path

from .paths import LOGS, REQUIREMENTS, VENV
from .process import Words, must, progress

# Python before 3.12 gives it to each new environment, where every start of the interpreter runs it.
_UNWANTED = "setuptools"


def tool(name: str) -> Path:
    """A program of the environment."""
    return VENV / "bin" / name


def ensure() -> None:
    """Make the environment and install what is pinned, unless both are as wanted."""
    stamp = VENV / ".requirements"
    wanted = f"{sys.version}\n{REQUIREMENTS.read_text()}without {_UNWANTED}\n"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    progress("build: installing the pinned tools into target/venv")
    VENV.parent.mkdir(exist_ok=True)
    must([sys.executable, "-m", "venv", "--clear", VENV], "python3 -m venv", LOGS / "venv.log")
    pip: Words = [tool("python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    install: Words = [*pip, "install", "--requirement", REQUIREMENTS]
    must(install, "installing the tools", LOGS / "tools.log")
    uninstall: Words = [*pip, "uninstall", "--yes", _UNWANTED]
    must(uninstall, f"removing {_UNWANTED}", LOGS / "tools.log")
    stamp.write_text(wanted)
