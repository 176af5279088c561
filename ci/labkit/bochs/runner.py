"""One run on Intel VT-x: boot L1, run the command, pass its output on live."""

from __future__ import annotations

import os
import select
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from .. import guest, packages
from ..errors import progress
from ..flavour import BochsFlavour
from ..runner import LAB_FAILED, TIMED_OUT, Options, Shape, run_folder, write
from . import config, contents, frames, image, initrd, kernel
from .collected import unpack
from .machine import Machine, prepare

_TAIL = 3000  # bytes of L1's console that are shown when the lab fails
_LOOK = 0.2  # seconds between two looks at L1's console, where it is shown


def run(flavour: BochsFlavour, shape: Shape, command: guest.Command, options: Options) -> int:
    """Run the command and return its status, 124 after a timeout, 125 when L1 failed."""
    packages.ensure_bochs()
    kernels = packages.index()
    bzimage = kernels[_L1_KERNEL]
    flat, address, entry = kernel.cached(bzimage)
    first = initrd.build(kernels[f"{_L1_KERNEL}-modules"], flavour.modules)
    files = (*contents.named(command), *options.add)
    tree = contents.gather(command, files)
    with image.packed(tree) as root, run_folder() as folder:
        whole = folder / "initrd"
        of_run = initrd.of_run(guest.script(command, flavour), guest.settings(command, 0, files))
        whole.write_bytes(first.read_bytes() + of_run)
        layout = config.Layout(
            folder=folder, model=flavour.model.name, cpus=shape.cpus, memory=shape.memory,
            kernel=flat, kernel_address=address, initrd=whole,
            root=root, root_size=root.stat().st_size,
        )  # fmt: skip
        arguments = f"{flavour.kernel_cmdline} {layout.kernel_arguments()}"
        prepare(layout, bzimage, entry, arguments)
        with Machine(layout) as machine:
            status = _attend(machine, layout, command.out, options)
    return status


# The smaller of the guests' kernels: it starts in fewer instructions.
_L1_KERNEL = "linux-6.1-cloud"


@dataclass
class _Received:
    """What has come out of L1 so far."""

    status: int | None = None
    files: bytearray = field(default_factory=bytearray)
    stream: frames.Demultiplexer = field(default_factory=frames.Demultiplexer)

    def take(self, data: bytes) -> None:
        """Sort a piece of the stream: output goes on, the rest is kept."""
        for kind, payload in self.stream.feed(data):
            if kind == frames.STDOUT:
                write(sys.stdout.buffer, payload)
            elif kind == frames.STDERR:
                write(sys.stderr.buffer, payload)
            elif kind == frames.FILES:
                self.files += payload
            else:
                self.status = frames.status_of(payload)


def _attend(machine: Machine, layout: config.Layout, out: Path, options: Options) -> int:
    received = _Received()
    if not _forward(machine, layout.serial, received, options):
        progress(f"the command did not end within {options.timeout:g} s")
        return TIMED_OUT
    if received.status is None:
        _explain(machine, layout, received)
        return LAB_FAILED
    unpack(bytes(received.files), out)
    return received.status


def _forward(machine: Machine, serial: Path, received: _Received, options: Options) -> bool:
    """Pass output on until the status or the end; False when time ran out."""
    end = time.monotonic() + options.timeout
    output = machine.output()
    shown = 0
    while received.status is None:
        left = end - time.monotonic()
        if left <= 0:
            return False
        ready, _, _ = select.select([output], [], [], min(left, _LOOK) if options.console else left)
        if options.console:
            shown += _show(serial, shown)
        if ready:
            data = os.read(output.fileno(), 65536)
            if not data:
                return True
            received.take(data)
    return True


def _show(serial: Path, start: int) -> int:
    """Pass on what L1's console has printed since `start`; the number of bytes."""
    if not serial.exists():
        return 0
    with serial.open("rb") as file:
        file.seek(start)
        data = file.read()
    write(sys.stderr.buffer, data)
    return len(data)


def _explain(machine: Machine, layout: config.Layout, received: _Received) -> None:
    said = {
        "its console": layout.serial.read_bytes() if layout.serial.exists() else b"",
        "the emulator": bytes(received.stream.outside) + machine.complaints().encode(),
        "the emulator's log": layout.log.read_bytes() if layout.log.exists() else b"",
    }
    progress("L1 ended without the command's status")
    for who, data in said.items():
        progress(f"{who} said:\n{data[-_TAIL:].decode(errors='replace').strip() or 'nothing'}")
