"""The lab's check of itself: statuses, output, and the hardware it promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .flavour import BochsFlavour, Flavour


@dataclass(frozen=True)
class Check:
    """A command in L1 and the status it must end with."""

    claim: str
    command: tuple[str, ...]
    status: int = 0
    leaves: str = ""  # a file in the output folder afterwards


def _shell(claim: str, text: str, status: int = 0, leaves: str = "") -> Check:
    return Check(claim, ("sh", "-c", text), status, leaves)


_KVM_VERSION = (
    "import fcntl, os; fd = os.open('/dev/kvm', os.O_RDWR); "
    "raise SystemExit(0 if fcntl.ioctl(fd, 0xAE00) == 12 else 1)"
)

_FILE = "doctor"  # a file that a check leaves in the output folder

COMMON = (
    Check("a command runs", ("true",)),
    _shell("its status is returned", "exit 7", 7),
    _shell("all of its status is returned", "exit 255", 255),
    Check("KVM has API version 12", ("python3", "-c", _KVM_VERSION)),
    _shell("files come back from the folder", f'echo ok >"$VMLET_OUT/{_FILE}"', leaves=_FILE),
    _shell("the host's files are not writable", "! touch /etc/lab-was-here 2>/dev/null"),
)  # fmt: skip
_AMD = (
    _shell("nested paging is on", 'test "$(cat /sys/module/kvm_amd/parameters/npt)" = Y'),
    _shell("VT-d translates", "dmesg | grep -q 'DMAR: Intel(R) Virtualization Technology'"),
    _shell("VT-d remaps interrupts", "dmesg | grep -q 'DMAR-IR: Enabled IRQ remapping'"),
)


def checks(flavour: Flavour) -> tuple[Check, ...]:
    """What must hold in a flavour."""
    if isinstance(flavour, BochsFlavour):
        return (*COMMON, _vmx(flavour.model.parameters))
    return (*COMMON, *_AMD)


def _vmx(parameters: tuple[tuple[str, str], ...]) -> Check:
    """kvm_intel runs with these parameters; one run for all, since each boots L1."""
    folder = "/sys/module/kvm_intel/parameters"
    tests = [f'test "$(cat {folder}/{name})" = {value}' for name, value in parameters]
    has_vmx = "grep -q '^flags.* vmx ' /proc/cpuinfo"
    shown = ", ".join(f"{name}={value}" for name, value in parameters)
    return _shell(f"VT-x with {shown}", " && ".join([has_vmx, *tests]))


def examine(flavour: Flavour, out: Path, run: Callable[[list[str]], int]) -> int:
    """Run all checks by `run`, whose output folder is `out`; 0 when each holds."""
    failures = 0
    for check in checks(flavour):
        file = out / check.leaves if check.leaves else None
        if file is not None:
            file.unlink(missing_ok=True)
        status = run(list(check.command))
        left = file is None or file.is_file()
        held = status == check.status and left
        failures += not held
        found = "" if held else f" (status {status}, expected {check.status})"
        found += "" if left else f" (no file {check.leaves})"
        print(f"{'ok  ' if held else 'FAIL'} {check.claim}{found}", flush=True)
        if file is not None:
            file.unlink(missing_ok=True)
    return min(failures, 1)
