"""virtio-net on tap interfaces under KVM, against QEMU's microvm on the same KVM.

Same kernel, same program in the guest, a tap interface each, offloads on. Rows: TCP streams out of
the guest and into it, by the MiB, and one byte to and fro. Rows with `vhost`: the host's kernel
moves the frames on both sides.
"""

from __future__ import annotations

import subprocess
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
_PROGRAM = TARGET / "bench" / "netload"
_INITRD = TARGET / "bench" / "net.cpio"
_RELEASE = "6.1"
_CMDLINE = (
    "console=ttyS0 quiet panic=-1 reboot=t i8042.noaux i8042.nokbd tsc=reliable "
    "cryptomgr.notests=1 mitigations=off no_timer_check ipv6.disable=1"
)
_QEMU = (
    *("-M", "microvm,pcie=on,pit=off,pic=off,rtc=on,kernel-irqchip=split,auto-kernel-cmdline=off"),
    *("-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", "256"),
    *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"),
    *("-device", "virtio-net-pci,netdev=net,disable-legacy=on,romfile="),
)
_LEAST, _CAP = 10, 40
#: Row, mode of the program, how many of it in a batch, highest ratio.
_MODES = (
    ("out", "out", 24, 0.95),
    ("in", "in", 24, 0.65),
    ("rr", "rr", 300, 0.8),
)
_VHOST_LIMIT = 1.15
_TAPS = ("vmbench0", "vmbench1", "vmbench2", "vmbench3")

ENGINE = "kvm"
NEEDS = "kvm-linux"
PLANS = (
    *(Plan(row, "us", "QEMU, vhost=off", limit) for row, _, _, limit in _MODES),
    *(Plan(f"vhost-{row}", "us", "QEMU, vhost=on", _VHOST_LIMIT) for row, _, _, _ in _MODES),
)


def prepare() -> None:
    """Have QEMU and the kernel, compile and pack the program of both ends."""
    guests.index()
    compiler: Words = ["gcc", "-O2", "-Wall", "-Wextra", "-static", "-o", _PROGRAM]
    must([*compiler, _SUBJECT / "netload.c"], "compiling init", LOGS / "bench-netload.log")
    modules: Words = [guests.modules(_RELEASE), "virtio_pci", "virtio_net"]
    pack: Words = [tool("python"), "-B", _SUBJECT / "initramfs.py", _INITRD, _PROGRAM, *modules]
    must(pack, "packing the initramfs", LOGS / "bench-initramfs.log")


def needed() -> list[Path]:
    """What `prepare` makes."""
    return [_PROGRAM, _INITRD, *guests.needed()[2:]]


class _Side:
    """One guest, and the processor time its VMM takes beside the guest."""

    def __init__(self, worker: Worker, prefix: str) -> None:
        self.worker = worker
        self.prefix = prefix
        self.beside: dict[str, list[float]] = defaultdict(list)

    def batch(self) -> Samples:
        samples = {}
        for row, mode, count, _ in _MODES:
            ((took, beside),) = self.worker.ask(f"{mode} {count}", 1)
            samples[self.prefix + row] = [took / count / 1e3]
            self.beside[self.prefix + row].append(beside / count / 1e3)
        return samples


@contextmanager
def _taps() -> Iterator[None]:
    """Interfaces with addresses, as long as it takes."""
    ip = ["ip"]
    try:
        for number, name in enumerate(_TAPS):
            for words in (
                ["tuntap", "add", "dev", name, "mode", "tap"],
                ["addr", "add", f"10.77.{number}.1/24", "dev", name],
                ["link", "set", name, "up"],
            ):
                done = subprocess.run([*ip, *words], check=False)
                if done.returncode:
                    raise CommandError(f"ip {' '.join(words)} failed; it takes root")
        yield
    finally:
        for name in _TAPS:
            subprocess.run([*ip, "link", "del", name], check=False, capture_output=True)


@contextmanager
def _server() -> Iterator[None]:
    """The host's end."""
    with subprocess.Popen([_PROGRAM, "serve"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.kill()


def _command(side: str, number: int, vhost: str) -> Words:
    """The command of one side with its own interface."""
    cmdline = f"{_CMDLINE} net.ifnames=0 GUEST=10.77.{number}.2 HOST=10.77.{number}.1"
    program: Words = [tool("python"), "-B", _SUBJECT / "net.py", side, _TAPS[number], vhost]
    common: Words = [*program, guests.kernel(_RELEASE), _INITRD, cmdline]
    return [*common, *(["--", packages.QEMU, *_QEMU] if side == "qemu" else [])]


def run(told: Callable[[str], None]) -> list[Row]:
    """Measure."""
    told(f"{packages.QEMU} {' '.join(_QEMU)} -append '{_CMDLINE}'")
    with ExitStack() as stack:
        stack.enter_context(_taps())
        stack.enter_context(_server())
        sides = {}
        for number, (name, vhost) in enumerate(
            [("vmlet", "off"), ("qemu", "off"), ("vmlet", "on"), ("qemu", "on")]
        ):
            worker = stack.enter_context(Worker(_command(name, number, vhost)))
            side = _Side(worker, "vhost-" if vhost == "on" else "")
            side.batch()  # what is paid once
            side.beside.clear()
            sides[name, vhost] = side

        def of(name: str) -> Callable[[], Samples]:
            return lambda: {**sides[name, "off"].batch(), **sides[name, "on"].batch()}

        rows = measure(PLANS, of("vmlet"), of("qemu"), least=_LEAST, cap=_CAP, told=told)
    for (name, _), side in sides.items():
        for row, times in side.beside.items():
            told(f"{row}: {low(times):.1f} us of processor an operation in {name} beside vCPUs")
    return rows
