"""Boots the Debian 6.1 cloud kernel from Python, on the engine that this host offers."""

from __future__ import annotations

import argparse
import subprocess

from . import build, place
from .paths import REPOSITORY
from .process import progress
from .tools import tool

KERNEL = "linux-6.1-cloud"
_SCRIPT = REPOSITORY / "examples" / "demo.py"


def main(arguments: list[str]) -> int:
    """Set up what is missing, choose the place, run the example."""
    parser = argparse.ArgumentParser(prog="ci/demo", description=__doc__)
    parser.add_argument(
        "--kernel", default=KERNEL, help=f"a name of `ci/kernels --print` ({KERNEL})"
    )
    options = parser.parse_args(arguments)
    build.ensure()
    kernels = place.kernels()
    if options.kernel not in kernels:
        progress(f"demo: there is no {options.kernel}; there are {', '.join(sorted(kernels))}")
        return 1
    engine, reason = place.engine()
    print(f"demo: engine {engine}: {reason}", flush=True)
    command = [str(tool("python")), str(_SCRIPT), kernels[options.kernel]]
    return subprocess.run(command, check=False, cwd=REPOSITORY).returncode
