"""virtio-vsock under KVM, against QEMU's microvm with vhost-vsock on the same KVM.

Same kernel, same program in the guest, same program at the host's end: it listens at a Unix socket
for ours, in the kernel for QEMU. Rows: streams out of the guest and into it, by the MiB, and
one byte to and fro.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from .asked import CAP, CMDLINE, LEAST, Bench, Mode, Side, tell
from .result import Row
from .rounds import Plan, measure
from .worker import Worker

_PORT = 5001
_BENCH = Bench(
    name="vsock",
    module="vmw_vsock_virtio_transport",
    device=("-device", "vhost-vsock-pci,guest-cid=77,disable-legacy=on"),
    modes=(
        Mode("out", "out", 16, 1.7),
        Mode("in", "in", 16, 1.0),
        Mode("rr", "rr", 300, 1.35),
    ),
    listens_by="vhost-vsock takes its module",
)

ENGINE = "kvm"
NEEDS = "kvm-linux"
PLANS = tuple(Plan(mode.row, "us", "QEMU, vhost-vsock", mode.limit) for mode in _BENCH.modes)

prepare, needed = _BENCH.prepare, _BENCH.needed


def run(told: Callable[[str], None]) -> list[Row]:
    """Measure."""
    told(f"{' '.join(map(str, _BENCH.qemu))} -append '{CMDLINE}'")
    with ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "vsock"
        stack.enter_context(_BENCH.host_end())
        stack.enter_context(_BENCH.host_end(Path(f"{path}_{_PORT}")))
        commands = {"vmlet": _BENCH.ours(path), "QEMU": _BENCH.theirs(path)}
        sides = {
            name: Side(stack.enter_context(Worker(command)), _BENCH.modes)
            for name, command in commands.items()
        }
        batches = [side.batch for side in sides.values()]
        rows = measure(PLANS, batches[0], batches[1], least=LEAST, cap=CAP, told=told)
        tell({name: [side] for name, side in sides.items()}, told)
    return rows
