"""The lab's check of itself: statuses, output, and the hardware it promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """A command in L1 and the status it must end with."""

    claim: str
    command: tuple[str, ...]
    status: int = 0


def _shell(claim: str, text: str, status: int = 0) -> Check:
    return Check(claim, ("sh", "-c", text), status)


_KVM_VERSION = (
    "import fcntl, os; fd = os.open('/dev/kvm', os.O_RDWR); "
    "raise SystemExit(0 if fcntl.ioctl(fd, 0xAE00) == 12 else 1)"
)

CHECKS = (
    Check("a command runs", ("true",)),
    _shell("its status is returned", "exit 7", 7),
    _shell("all of its status is returned", "exit 255", 255),
    _shell("nested paging is on", 'test "$(cat /sys/module/kvm_amd/parameters/npt)" = Y'),
    Check("KVM has API version 12", ("python3", "-c", _KVM_VERSION)),
    _shell("VT-d translates", "dmesg | grep -q 'DMAR: Intel(R) Virtualization Technology'"),
    _shell("VT-d remaps interrupts", "dmesg | grep -q 'DMAR-IR: Enabled IRQ remapping'"),
    _shell("the output folder is writable", 'echo ok >"$VMLET_OUT/doctor" && rm "$VMLET_OUT/doctor"'),
    _shell("the host's files are not", "! touch /etc/lab-was-here 2>/dev/null"),
)  # fmt: skip


def examine(run: Callable[[list[str]], int]) -> int:
    """Run all checks by `run`; 0 when each holds."""
    failures = 0
    for check in CHECKS:
        status = run(list(check.command))
        held = status == check.status
        failures += not held
        found = "" if held else f" (status {status}, expected {check.status})"
        print(f"{'ok  ' if held else 'FAIL'} {check.claim}{found}", flush=True)
    return min(failures, 1)
