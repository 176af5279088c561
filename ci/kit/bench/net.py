"""virtio-net on tap interfaces under KVM, against QEMU's microvm on the same KVM.

Same kernel, same program in the guest, a tap interface each, offloads on. Rows: TCP streams out of
the guest and into it, by the MiB, and one byte to and fro. Rows with `vhost`: the host's kernel
moves the frames on both sides.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from ..process import CommandError, Words
from .asked import CAP, CMDLINE, LEAST, Bench, Mode, Side, tell
from .result import Row
from .rounds import Plan, Samples, measure
from .worker import Worker

_CMDLINE = f"{CMDLINE} ipv6.disable=1"
_BENCH = Bench(
    name="net",
    module="virtio_net",
    device=("-device", "virtio-net-pci,netdev=net,disable-legacy=on,romfile="),
    modes=(
        Mode("out", "out", 24, 0.95),
        Mode("in", "in", 24, 0.65),
        Mode("rr", "rr", 300, 0.8),
    ),
    listens_by="its port is taken",
)
_VHOST_LIMIT = 1.15
_TAPS = ("vmbench0", "vmbench1", "vmbench2", "vmbench3")

ENGINE = "kvm"
NEEDS = "kvm-linux"
PLANS = (
    *(Plan(mode.row, "us", "QEMU, vhost=off", mode.limit) for mode in _BENCH.modes),
    *(Plan(f"vhost-{mode.row}", "us", "QEMU, vhost=on", _VHOST_LIMIT) for mode in _BENCH.modes),
)

prepare, needed = _BENCH.prepare, _BENCH.needed


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


def _command(side: str, number: int, vhost: str) -> Words:
    """The command of one side with its own interface."""
    cmdline = f"{_CMDLINE} net.ifnames=0 GUEST=10.77.{number}.2 HOST=10.77.{number}.1"
    command = _BENCH.ours if side == "vmlet" else _BENCH.theirs
    return command(_TAPS[number], vhost, cmdline=cmdline)


def run(told: Callable[[str], None]) -> list[Row]:
    """Measure."""
    told(f"{' '.join(map(str, _BENCH.qemu))} -append '{_CMDLINE}'")
    with ExitStack() as stack:
        stack.enter_context(_taps())
        stack.enter_context(_BENCH.host_end())
        sides: dict[str, list[Side]] = {"vmlet": [], "qemu": []}
        for number, (name, vhost) in enumerate(
            [("vmlet", "off"), ("qemu", "off"), ("vmlet", "on"), ("qemu", "on")]
        ):
            worker = stack.enter_context(Worker(_command(name, number, vhost)))
            prefix = "vhost-" if vhost == "on" else ""
            sides[name].append(Side(worker, _BENCH.modes, prefix))

        def of(name: str) -> Callable[[], Samples]:
            own, by_kernel = sides[name]
            return lambda: {**own.batch(), **by_kernel.batch()}

        rows = measure(PLANS, of("vmlet"), of("qemu"), least=LEAST, cap=CAP, told=told)
        tell(sides, told)
    return rows
