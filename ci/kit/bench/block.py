"""virtio-blk under KVM, against QEMU's microvm with an I/O thread and io_uring on the same KVM.

Same kernel, same program in the guest, an image file each in the same directory, the same cache
mode (the host's page cache). Requests are direct in the guest. Rows: reads of 4 KiB at random
places with 1 and with 16 under way, and streams of 1 MiB.
"""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from labkit import packages

from ..paths import LOGS, TARGET
from ..process import Words, must
from ..tools import tool
from . import guests
from .result import Row
from .rounds import Plan, Samples, measure
from .statistics import low
from .worker import Worker

_SUBJECT = Path(__file__).resolve().parent / "subject"
_PROGRAM = TARGET / "bench" / "blockload"
_INITRD = TARGET / "bench" / "block.cpio"
_RELEASE = "6.1"
_CMDLINE = (
    "console=ttyS0 quiet panic=-1 reboot=t i8042.noaux i8042.nokbd tsc=reliable "
    "cryptomgr.notests=1 mitigations=off no_timer_check"
)
_QEMU = (
    *("-M", "microvm,pcie=on,pit=off,pic=off,rtc=on,kernel-irqchip=split,auto-kernel-cmdline=off"),
    *("-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", "256"),
    *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"),
    *("-object", "iothread,id=io"),
    *("-device", "virtio-blk-pci,drive=disk,iothread=io,disable-legacy=on"),
)
_SIZE = 128 << 20
_LEAST, _CAP = 10, 40
#: Row, mode of the program, requests in a batch, highest ratio.
_ROWS = (
    ("rand-qd1", "r1", 400, 0.9),
    ("rand-qd16", "r16", 1600, 0.65),
    ("seq-read", "sr", 64, 1.1),
    ("seq-write", "sw", 64, 1.1),
)

ENGINE = "kvm"
NEEDS = "kvm-linux"
PLANS = tuple(Plan(row, "us", "QEMU microvm", limit) for row, _, _, limit in _ROWS)


def prepare() -> None:
    """Have QEMU and the kernel, compile and pack the guest's program."""
    guests.index()
    compiler: Words = ["gcc", "-O2", "-Wall", "-Wextra", "-static", "-o", _PROGRAM]
    must([*compiler, _SUBJECT / "blockload.c"], "compiling init", LOGS / "bench-blockload.log")
    modules: Words = [guests.modules(_RELEASE), "virtio_pci", "virtio_blk"]
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
        for row, mode, count, _ in _ROWS:
            ((took, beside),) = self.worker.ask(f"{mode} {count}", 1)
            samples[row] = [took / count / 1e3]
            self.beside[row].append(beside / count / 1e3)
        return samples


def run(told: Callable[[str], None]) -> list[Row]:
    """Measure."""
    program: Words = [tool("python"), "-B", _SUBJECT / "block.py"]
    common: Words = [guests.kernel(_RELEASE), _INITRD, _CMDLINE]
    with tempfile.TemporaryDirectory() as folder:
        images = [Path(folder) / name for name in ("vmlet.img", "qemu.img")]
        for image in images:
            with image.open("wb") as file:
                for _ in range(_SIZE >> 20):
                    file.write(os.urandom(1 << 20))
        drive = f"if=none,id=disk,file={images[1]},format=raw,cache=writeback,aio=io_uring"
        qemu: Words = [packages.QEMU, *_QEMU, "-drive", drive]
        told(f"{' '.join(map(str, qemu))} -append '{_CMDLINE}'")
        ours: Words = [*program, "vmlet", images[0], *common]
        theirs: Words = [*program, "qemu", images[1], *common, "--", *qemu]
        with Worker(ours) as first, Worker(theirs) as second:
            sides = {"vmlet": _Side(first), "QEMU": _Side(second)}
            for side in sides.values():
                side.batch()  # what is paid once
                side.beside.clear()
            batches = [side.batch for side in sides.values()]
            rows = measure(PLANS, batches[0], batches[1], least=_LEAST, cap=_CAP, told=told)
        for name, side in sides.items():
            for row, times in side.beside.items():
                told(f"{row}: {low(times):.1f} us of processor a request in {name} beside vCPUs")
    return rows
