"""The lab's check of itself: statuses, output, and the hardware it promises.

Each run costs a start of L1, so all that can be asked inside is asked in one: it leaves a line a
question in the output folder and ends with a status that needs all eight bits.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from .flavour import BochsFlavour, Flavour
from .runner import LAB_FAILED, TIMED_OUT

_LAST = 255  # the status that the run with all questions ends with
_FILE = "doctor"  # what it leaves in the output folder: lines of number and status


@dataclass(frozen=True)
class Check:
    """A command of the shell in L1 that holds when its status is 0."""

    claim: str
    text: str


_KVM_VERSION = (
    "import fcntl, os; fd = os.open('/dev/kvm', os.O_RDWR); "
    "raise SystemExit(0 if fcntl.ioctl(fd, 0xAE00) == 12 else 1)"
)
COMMON = (
    Check("KVM has API version 12", shlex.join(("python3", "-c", _KVM_VERSION))),
    Check("the host's files are not writable", "! touch /etc/lab-was-here 2>/dev/null"),
)
_AMD = (
    Check("a command may make user namespaces", "unshare --user true"),
    Check("nested paging is on", 'test "$(cat /sys/module/kvm_amd/parameters/npt)" = Y'),
)


def _logged(claim: str, line: str) -> Check:
    """The kernel's log has this line."""
    return Check(claim, f"dmesg | grep -q '{line}'")


def _unit(name: str) -> Check:
    """The kernel has an IOMMU whose name begins so."""
    return Check(f"an IOMMU {name} is there", f"ls /sys/class/iommu | grep -q '^{name}'")


def _present(claim: str, device: str) -> Check:
    """A PCI device with this number is there."""
    return Check(claim, f"cat /sys/bus/pci/devices/*/device | grep -q {device}")


_ALLOWED = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
# What a flavour has to have for what it provides.
_PROVIDED = {
    "vtd": (
        _logged("VT-d translates", "DMAR: Intel(R) Virtualization Technology"),
        _logged("VT-d remaps interrupts", "DMAR-IR: Enabled IRQ remapping"),
    ),
    "iommufd": (
        Check("iommufd is there", "test -c /dev/iommu"),
        Check("unsafe interrupts are refused", f'test "$(cat {_ALLOWED})" = N'),
    ),
    "viommu": (
        _present("a virtio-iommu is there", "0x1057"),
        Check("unsafe interrupts are allowed", f'test "$(cat {_ALLOWED})" = Y'),
    ),
    "amdvi": (
        _unit("ivhd"),
        _logged("AMD-Vi remaps interrupts", "AMD-Vi: Interrupt remapping enabled"),
    ),
    "edu": (_present("edu is there", "0x11e8"),),
    "sriov": (_present("the card with virtual functions is there", "0x10c9"),),
    "ats": (_present("the card with an address cache is there", "0x1041"),),
}


def checks(flavour: Flavour) -> tuple[Check, ...]:
    """What must hold inside a flavour."""
    if isinstance(flavour, BochsFlavour):
        return (*COMMON, _vmx(flavour.model.parameters))
    provided = (_PROVIDED.get(name, ()) for name in flavour.provides)
    return (*COMMON, *_AMD, *chain.from_iterable(provided))


def _vmx(parameters: tuple[tuple[str, str], ...]) -> Check:
    """kvm_intel runs with these parameters."""
    folder = "/sys/module/kvm_intel/parameters"
    tests = [f'test "$(cat {folder}/{name})" = {value}' for name, value in parameters]
    has_vmx = "grep -q '^flags.* vmx ' /proc/cpuinfo"
    shown = ", ".join(f"{name}={value}" for name, value in parameters)
    return Check(f"VT-x with {shown}", " && ".join([has_vmx, *tests]))


def script(asked: tuple[Check, ...]) -> str:
    """A script for L1 that asks everything, whatever the answers are."""
    lines = [
        f'( {check.text} ); echo "{number} $?" >>"$VMLET_OUT/{_FILE}"'
        for number, check in enumerate(asked)
    ]
    return "\n".join([*lines, f"exit {_LAST}"])


def answers(text: str) -> dict[int, int]:
    """Numbers of questions and the statuses that they ended with."""
    pairs = (line.split() for line in text.splitlines())
    return {int(pair[0]): int(pair[1]) for pair in pairs if len(pair) == 2}


def examine(flavour: Flavour, out: Path, run: Callable[[list[str]], int]) -> int:
    """Check all by `run`, whose output folder is `out`; 0 when everything holds, else 1.

    Where `run` tells that L1 ended or stood still, nothing is known: its status is returned.
    """
    ended = 0

    def watched(words: list[str]) -> int:
        nonlocal ended
        status = run(words)
        ended = ended or (status if status in (LAB_FAILED, TIMED_OUT) else 0)
        return status

    failures = 0
    for claim, found in _outcomes(flavour, out, watched):
        failures += bool(found)
        print(f"{'FAIL' if found else 'ok  '} {claim}{f' ({found})' if found else ''}", flush=True)
    return ended or min(failures, 1)


def _outcomes(
    flavour: Flavour, out: Path, run: Callable[[list[str]], int]
) -> Iterator[tuple[str, str]]:
    """Each claim, and what was found instead."""
    yield "a command runs", _other(run(["true"]), 0)
    asked = checks(flavour)
    left = out / _FILE
    left.unlink(missing_ok=True)
    status = run(["sh", "-c", script(asked)])
    yield "all of its status is returned", _other(status, _LAST)
    yield "files come back from the folder", "" if left.is_file() else f"no file {left.name}"
    told = answers(left.read_text()) if left.is_file() else {}
    left.unlink(missing_ok=True)
    for number, check in enumerate(asked):
        yield check.claim, _other(told.get(number), 0)


def _other(status: int | None, expected: int) -> str:
    if status is None:
        return "no answer"
    return "" if status == expected else f"status {status}, expected {expected}"
