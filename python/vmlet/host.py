"""What this host offers: findings, and its PCI functions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from vmlet import _core
from vmlet.inventory import (
    IommuGroup,
    Member,
    Obstacle,
    PciDevice,
    ReservedRegion,
    VirtualFunctions,
    pci_device,
    pci_devices,
)

__all__ = [
    "Finding",
    "IommuGroup",
    "Member",
    "Obstacle",
    "PciDevice",
    "ReservedRegion",
    "VirtualFunctions",
    "capabilities",
    "doctor",
    "pci_device",
    "pci_devices",
]


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of one topic."""

    topic: str
    #: "ok", "no", "warning" or "unknown".
    state: str
    #: What was seen.
    detail: str
    #: Why it is not "ok".
    cause: str | None = None
    #: What can be done about it.
    remedy: str | None = None


def capabilities() -> dict[str, Any]:
    """What small guests on /dev/kvm found out.

    "cpu_models" says of each CPU model (the names that ``VM(cpu=...)`` takes) and each engine that
    works here which features of the model are "missing", and which of the processor's guests see
    although the model has not got them ("unmasked"). An engine carries the models for which both
    are empty.

    >>> sorted(capabilities())
    ['cpu_models', 'detail', 'engine', 'remedy', 'runs_kernels', 'tsc_khz', 'usable', 'vendor']
    >>> capabilities()["cpu_models"]["x86-64-v1"]["soft"]
    {'missing': [], 'unmasked': []}
    """
    found: dict[str, Any] = json.loads(_core.kvm_probe())
    return found


def doctor() -> list[Finding]:
    """What this host offers for virtual machines, each "no" with its cause and remedy.

    >>> {finding.state for finding in doctor()} <= {"ok", "no", "warning", "unknown"}
    True
    """
    return [Finding(**finding) for finding in json.loads(_core.host_findings())]
