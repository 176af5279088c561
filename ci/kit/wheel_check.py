"""Tries the wheel as a stranger would: a fresh environment, no compiler, no index."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from . import pythons
from .paths import TARGET
from .process import Words, output

# Nothing of the toolchain is to be found from inside.
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"}

_IMPORT = """
import importlib.resources, sys, vmlet
assert importlib.resources.files("vmlet").joinpath("py.typed").is_file(), "no py.typed"
assert vmlet.parse_size("1K") == 1024
try:
    vmlet.VM(kernel=b"")
except vmlet.Error as error:
    assert error.remedy or str(error)
else:
    raise SystemExit("an empty kernel is taken")
print(vmlet.__version__, "%d.%d" % sys.version_info[:2])
"""


class WheelError(Exception):
    """The wheel does not work as it should."""


def check(wheel: Path, version: str) -> None:
    """Install the wheel for CPython `version` and use it: import, an error, the command line."""
    program = pythons.find(version)
    if program is None:
        raise WheelError(f"there is no CPython {version}")
    with tempfile.TemporaryDirectory(prefix=f"venv-{version}-", dir=TARGET) as folder:
        _run([program, "-m", "venv", folder])
        python = f"{folder}/bin/python"
        _run(
            [
                python,
                "-m",
                "pip",
                "--disable-pip-version-check",
                "install",
                "--no-index",
                str(wheel),
            ]
        )
        told = _run([python, "-c", _IMPORT]).split()
        if told[1] != version:
            raise WheelError(f"the environment runs {told[1]}, not {version}")
        shown = _run([f"{folder}/bin/vmlet", "--version"])
        if told[0] not in shown:
            raise WheelError(f"vmlet --version prints {shown!r}")
        report = json.loads(_run([f"{folder}/bin/vmlet", "doctor", "--json"], statuses=(0, 1)))
        if not report["findings"]:
            raise WheelError("vmlet doctor finds nothing")


def _run(command: list[str], statuses: tuple[int, ...] = (0,)) -> str:
    clean: Words = ["env", "-i", *(f"{name}={value}" for name, value in _ENVIRONMENT.items())]
    with tempfile.TemporaryFile() as complaints:
        status, said = output([*clean, *command], timeout=300, stderr=complaints)
        complaints.seek(0)
        both = said + complaints.read().decode(errors="replace")
    if status not in statuses:
        raise WheelError(f"{' '.join(command[:3])} ended with {status}:\n{both[-2000:]}")
    return said
