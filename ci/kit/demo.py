"""Boots the Debian 6.1 cloud kernel from Python: here, or in the lab where KVM cannot."""

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
    command = [str(tool("python")), str(_SCRIPT), kernels[options.kernel]]
    host = place.probe()
    if host.runs_kernels:
        print(f"demo: engine kvm on this host's /dev/kvm: {host.detail}", flush=True)
    else:
        why = f"this host's /dev/kvm cannot run a kernel: {host.detail}"
        lab = f"ci/lab {place.LAB}"
        print(f"demo: engine kvm inside {lab} (emulated AMD-V), as {why}", flush=True)
        command = [str(REPOSITORY / "ci" / "lab"), place.LAB, "--", *command]
    return subprocess.run(command, check=False, cwd=REPOSITORY).returncode
