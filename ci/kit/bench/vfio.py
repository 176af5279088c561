"""Devices of the host under VFIO, in the lab's machine with two of each kind.

`map-2m`, `map-4k`: memory is made and mapped for a device's DMA, by its first touch, against bare
ioctls that do the same; its pages on the host are 2 MiB or 4 KiB large. `unmap-2m`, `unmap-4k`: it
is taken from the device. `ping`, `nvme`: a guest that drives a virtual function of a network card
and an NVMe controller, against QEMU's vfio-pci with others of the same kind: the median round trip
to the card, and reads of 4 KiB. How long a coroutine takes to hear of an interrupt's eventfd is
told beside.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from labkit import packages

from ..process import CommandError, Words
from ..tools import tool
from . import guests
from .asked import CMDLINE, Mode, Program, Side, tell
from .floors import compile_floor, floor
from .result import Row
from .rounds import Plan, Samples, measure
from .worker import Worker

_SUBJECT = Path(__file__).resolve().parent / "subject"
_PROGRAM = Program("vfio")
#: The kernels for clouds lack the driver of virtual functions.
_RELEASE, _KIND = "6.12", ""
_MODULES = ("igbvf", "nvme", "virtio_pci")
_SIZE = 1 << 30
_PAGES = ("2m", "4k")
_MAP_LEAST, _MAP_CAP = 6, 12
_LEAST, _CAP = 10, 40
_WAKES = 500
_LIMIT = 1.15
_HOST, _GUESTS = "10.78.0.1", ("10.78.0.2", "10.78.0.3")
_CARD, _DISK = (0x8086, 0x10C9), 0x010802
_QEMU = (
    *("-M", "q35", "-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", "256"),
    *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"),
)
_MODES = (Mode("ping", "ping", 200, _LIMIT), Mode("nvme", "nvme", 400, _LIMIT))

ENGINE = "kvm"
NEEDS = "kvm-linux"
LAB = "cards"
_MAPS = tuple(
    Plan(f"{what}-{pages}", "ms", "bare ioctls", _LIMIT)
    for pages in _PAGES
    for what in ("map", "unmap")
)
_PLANS = tuple(Plan(mode.row, "us", "QEMU's vfio-pci", mode.limit) for mode in _MODES)
PLANS = (*_MAPS, *_PLANS)


def prepare() -> None:
    """Compile the floor and the guests' program, have QEMU and the kernel."""
    compile_floor("vfio")
    _PROGRAM.prepare(_RELEASE, _KIND, *_MODULES)


def needed() -> list[Path]:
    """What `prepare` makes."""
    return [floor("vfio"), *_PROGRAM.needed()]


@dataclass(frozen=True)
class _Cards:
    """Addresses of what is measured with; one of each for a side."""

    vfs: tuple[str, str]
    disks: tuple[str, str]
    #: The IOMMU groups of the disks.
    groups: tuple[int, int]


def _vmlet(*words: str) -> Any:
    """What the command line prints as JSON."""
    command: Words = [tool("python"), "-B", "-m", "vmlet.cli", *words, "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise CommandError(f"vmlet {' '.join(words)} failed: {done.stdout}{done.stderr}")
    return json.loads(done.stdout)


def _ip(words: str) -> None:
    if subprocess.run(["ip", *words.split()], check=False).returncode:
        raise CommandError(f"ip {words} failed; it takes root")


@contextmanager
def _cards() -> Iterator[_Cards]:
    """Two virtual functions whose card answers, and two disks, all given to VFIO."""
    every = _vmlet("vfio", "list")
    (card,) = (one["address"] for one in every if (one["vendor"], one["device"]) == _CARD)
    disks = [one for one in every if one["class_code"] == _DISK]
    if len(disks) != 2:
        raise CommandError(f"{len(disks)} NVMe controllers are here, where two are measured with")
    (interface,) = Path("/sys/bus/pci/devices", card, "net").iterdir()
    _ip(f"addr add {_HOST}/24 dev {interface.name}")
    _ip(f"link set {interface.name} up")
    macs = [word for number in (2, 3) for word in ("--mac", f"02:00:00:00:0a:{number:02x}")]
    addresses = [one["address"] for one in disks]
    try:
        (made,) = _vmlet("sriov", "create", card, "2", *macs)
        first, second = (one["address"] for one in made["vfs"])
        _vmlet("vfio", "bind", *addresses)
        groups = [one["group"]["number"] for one in disks]
        yield _Cards((first, second), (addresses[0], addresses[1]), (groups[0], groups[1]))
    finally:
        _vmlet("vfio", "release", *addresses)
        _vmlet("sriov", "remove", card)


def _map(worker: Worker, pages: str) -> Samples:
    ((mapped, unmapped),) = worker.ask(f"map {_SIZE}", 1)
    return {f"map-{pages}": [mapped / 1e6], f"unmap-{pages}": [unmapped / 1e6]}


def _maps(cards: _Cards, told: Callable[[str], None]) -> list[Row]:
    """Maps and unmaps, and how long a coroutine takes to wake."""
    ours: Words = [tool("python"), "-B", _SUBJECT / "dma.py", cards.disks[0]]
    bare: Words = [floor("vfio"), str(cards.groups[1]), cards.disks[1]]
    rows: list[Row] = []
    for pages in _PAGES:
        plans = [plan for plan in _MAPS if plan.row.endswith(pages)]
        with Worker([*ours, pages]) as subject, Worker([*bare, pages]) as reference:
            rows += measure(
                plans,
                partial(_map, subject, pages),
                partial(_map, reference, pages),
                least=_MAP_LEAST,
                cap=_MAP_CAP,
                told=told,
            )
            if pages == _PAGES[-1]:
                ((awaited, alone),) = subject.ask(f"await {_WAKES}", 1)
                told(
                    f"from an interrupt's eventfd to who awaits it: {awaited / 1e3:.0f} us (median "
                    f"of {_WAKES}); by the event loop's add_reader alone: {alone / 1e3:.0f} us"
                )
    return rows


def _guest_command(side: int, cards: _Cards) -> Words:
    """The command of vmlet (0) or QEMU (1) with its own devices."""
    cmdline = f"{CMDLINE} net.ifnames=0 ipv6.disable=1 GUEST={_GUESTS[side]} HOST={_HOST}"
    images: Words = [guests.kernel(_RELEASE, _KIND), _PROGRAM.initrd, cmdline]
    program: Words = [tool("python"), "-B", _SUBJECT / "vfio.py"]
    devices = (cards.vfs[side], cards.disks[side])
    if side == 0:
        return [*program, "vmlet", *devices, *images]
    flags = [word for one in devices for word in ("-device", f"vfio-pci,host={one}")]
    return [*program, "qemu", *images, "--", packages.QEMU, *_QEMU, *flags]


def _guests(cards: _Cards, told: Callable[[str], None]) -> list[Row]:
    """Guests with devices."""
    told(" ".join(map(str, _guest_command(1, cards))))
    with ExitStack() as stack:
        sides = [
            Side(stack.enter_context(Worker(_guest_command(side, cards))), _MODES)
            for side in (0, 1)
        ]
        batches = [side.batch for side in sides]
        rows = measure(_PLANS, batches[0], batches[1], least=_LEAST, cap=_CAP, told=told)
        tell({"vmlet": [sides[0]], "QEMU": [sides[1]]}, told)
    return rows


def run(told: Callable[[str], None]) -> list[Row]:
    """Measure."""
    with _cards() as cards:
        return [*_maps(cards, told), *_guests(cards, told)]
