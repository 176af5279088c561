"""What figures belong to: the processor, the kernel's KVM. No names of machines."""

from __future__ import annotations

import os
from pathlib import Path

from ..place import in_lab


def describe() -> str:
    """The host in a line."""
    modules = sorted(path.name for path in Path("/sys/module").glob("kvm_*"))
    parts = [_cpu(), f"{os.cpu_count()} CPUs", f"Linux {os.uname().release.split('-')[0]}"]
    parts.append(f"KVM by {', '.join(modules) or 'a built-in module'}")
    return ", ".join([*parts, "emulated machine of the lab"] if in_lab() else parts)


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return os.uname().machine
