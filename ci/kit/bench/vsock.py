"""virtio-vsock under KVM, against QEMU's microvm with vhost-vsock on the same KVM.

Same kernel, same program in the guest, same program at the host's end: it listens at a Unix socket
for ours, in the kernel for QEMU. Rows: streams out of the guest and into it, by the MiB, and
one byte to and fro.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from labkit import packages

from ..paths import LOGS, TARGET
from ..process import CommandError, Words, must
from ..tools import tool
from . import guests
from .result import Row
from .rounds import Plan, Samples, measure
from .statistics import low
from .worker import Worker

_SUBJECT = Path(__file__).resolve().parent / "subject"
_PROGRAM = TARGET / "bench" / "vsockload"
_INITRD = TARGET / "bench" / "vsock.cpio"
_RELEASE = "6.1"
_CMDLINE = (
    "console=ttyS0 quiet panic=-1 reboot=t i8042.noaux i8042.nokbd tsc=reliable "
    "cryptomgr.notests=1 mitigations=off no_timer_check"
)
_QEMU = (
    *("-M", "microvm,pcie=on,pit=off,pic=off,rtc=on,kernel-irqchip=split,auto-kernel-cmdline=off"),
    *("-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", "256"),
    *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"),
    *("-device", "vhost-vsock-pci,guest-cid=77,disable-legacy=on"),
)
_LEAST, _CAP = 10, 40
#: Row, mode of the program, how many of it in a batch, highest ratio.
_MODES = (
    ("out", "out", 16, 1.7),
    ("in", "in", 16, 1.0),
    ("rr", "rr", 300, 1.35),
)
_PORT = 5001

ENGINE = "kvm"
NEEDS = "kvm-linux"
PLANS = tuple(Plan(row, "us", "QEMU, vhost-vsock", limit) for row, _, _, limit in _MODES)


def prepare() -> None:
    """Have QEMU and the kernel, compile and pack the program of both ends."""
    guests.index()
    compiler: Words = ["gcc", "-O2", "-Wall", "-Wextra", "-static", "-o", _PROGRAM]
    must([*compiler, _SUBJECT / "vsockload.c"], "compiling init", LOGS / "bench-vsockload.log")
    modules: Words = [guests.modules(_RELEASE), "virtio_pci", "vmw_vsock_virtio_transport"]
    pack: Words = [tool("python"), "-B", _SUBJECT / "initramfs.py", _INITRD, _PROGRAM, *modules]
    must(pack, "packing the initramfs", LOGS / "bench-initramfs.log")


def needed() -> list[Path]:
    """What `prepare` makes."""
    return [_PROGRAM, _INITRD, *guests.needed()[2:]]


class _Side:
    """One guest, and the processor time its VMM takes beside the guest."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.beside: dict[str, list[float]] = defaultdict(list)

    def batch(self) -> Samples:
        samples = {}
        for row, mode, count, _ in _MODES:
            ((took, beside),) = self.worker.ask(f"{mode} {count}", 1)
            samples[row] = [took / count / 1e3]
            self.beside[row].append(beside / count / 1e3)
        return samples


@contextmanager
def _server(*path: Path) -> Iterator[None]:
    """The host's end."""
    with subprocess.Popen([_PROGRAM, "serve", *path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if process.stdout.readline() != b"=serving\n":
            raise CommandError("the host's end does not listen; vhost-vsock takes its module")
        yield
        process.kill()


def run(told: Callable[[str], None]) -> list[Row]:
    """Measure."""
    told(f"{packages.QEMU} {' '.join(_QEMU)} -append '{_CMDLINE}'")
    program: Words = [tool("python"), "-B", _SUBJECT / "vsock.py"]
    common: Words = [guests.kernel(_RELEASE), _INITRD, _CMDLINE]
    with ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "vsock"
        stack.enter_context(_server())
        stack.enter_context(_server(Path(f"{path}_{_PORT}")))
        ours: Words = [*program, "vmlet", path, *common]
        theirs: Words = [*program, "qemu", path, *common, "--", packages.QEMU, *_QEMU]
        sides = {}
        for name, command in (("vmlet", ours), ("QEMU", theirs)):
            sides[name] = _Side(stack.enter_context(Worker(command)))
            sides[name].batch()  # what is paid once
            sides[name].beside.clear()
        batches = [side.batch for side in sides.values()]
        rows = measure(PLANS, batches[0], batches[1], least=_LEAST, cap=_CAP, told=told)
    for name, side in sides.items():
        for row, times in side.beside.items():
            told(f"{row}: {low(times):.1f} us of processor an operation in {name} beside vCPUs")
    return rows
