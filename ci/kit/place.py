"""Where tests can run: this host, its /dev/kvm, the lab."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from .paths import REPOSITORY
from .process import CommandError, output, progress
from .tools import tool

LAB = "amd"


@dataclass(frozen=True)
class Host:
    """What a probe that ran found out about the host's KVM."""

    usable: bool
    runs_kernels: bool
    detail: str


def probe() -> Host:
    """Ask the built module, which runs a small guest."""
    code = "from vmlet import _core; print(_core.kvm_probe())"
    status, told = output([tool("python"), "-c", code], timeout=120)
    if status:
        raise CommandError(
            f"the probe of /dev/kvm failed with status {status}; see the lines above"
        )
    found = json.loads(told)
    return Host(bool(found["usable"]), bool(found["runs_kernels"]), str(found["detail"]))


def engine() -> tuple[str, str]:
    """The engine that "auto" takes on this host, and why."""
    host = probe()
    if host.runs_kernels:
        return "kvm", f"/dev/kvm runs kernels here: {host.detail}"
    return "soft", f"the software CPU, as /dev/kvm runs no kernel here: {host.detail}"


def in_lab() -> bool:
    """Whether this is the lab."""
    return "VMLET_LAB" in os.environ


def kernels() -> dict[str, str]:
    """The kernels that `ci/kernels` unpacked, by name."""
    progress("kernels: fetching and unpacking what is missing")
    status, told = output([REPOSITORY / "ci" / "kernels", "--print"], timeout=900)
    if status:
        raise CommandError("ci/kernels failed; see the lines above")
    return dict(line.split("=", 1) for line in told.splitlines() if "=" in line)
