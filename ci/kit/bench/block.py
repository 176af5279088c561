"""virtio-blk under KVM, against QEMU's microvm with an I/O thread and io_uring on the same KVM.

Same kernel, same program in the guest, an image file each in the same directory, the same cache
mode (the host's page cache). Requests are direct in the guest. Rows: reads of 4 KiB at random
places with 1 and with 16 under way, and streams of 1 MiB.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from .asked import CAP, CMDLINE, LEAST, Bench, Mode, Side, tell
from .result import Row
from .rounds import Plan, measure
from .worker import Worker

_SIZE = 128 << 20
_BENCH = Bench(
    name="block",
    module="virtio_blk",
    device=(
        *("-object", "iothread,id=io"),
        *("-device", "virtio-blk-pci,drive=disk,iothread=io,disable-legacy=on"),
    ),
    modes=(
        Mode("rand-qd1", "r1", 400, 0.9),
        Mode("rand-qd16", "r16", 1600, 0.65),
        Mode("seq-read", "sr", 64, 1.1),
        Mode("seq-write", "sw", 64, 1.1),
    ),
)

ENGINE = "kvm"
NEEDS = "kvm-linux"
PLANS = tuple(Plan(mode.row, "us", "QEMU microvm", mode.limit) for mode in _BENCH.modes)

prepare, needed = _BENCH.prepare, _BENCH.needed


def run(told: Callable[[str], None]) -> list[Row]:
    """Measure."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        images = [folder / name for name in ("vmlet.img", "qemu.img")]
        for image in images:
            with image.open("wb") as file:
                for _ in range(_SIZE >> 20):
                    file.write(os.urandom(1 << 20))
        drive = f"if=none,id=disk,file={images[1]},format=raw,cache=writeback,aio=io_uring"
        told(f"{' '.join(map(str, _BENCH.qemu))} -drive {drive} -append '{CMDLINE}'")
        commands = {
            "vmlet": _BENCH.ours(images[0]),
            "QEMU": _BENCH.theirs(images[1], more=["-drive", drive]),
        }
        sides = {
            name: Side(stack.enter_context(Worker(command)), _BENCH.modes)
            for name, command in commands.items()
        }
        batches = [side.batch for side in sides.values()]
        rows = measure(PLANS, batches[0], batches[1], least=LEAST, cap=CAP, told=told)
        tell({name: [side] for name, side in sides.items()}, told)
    return rows
