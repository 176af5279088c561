"""What the kernel logs of accesses and messages that an IOMMU has refused."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import edu
from conftest import lacks, limit

Fault = tuple[str, str, int]
"""Direction, device, address."""


@dataclass(frozen=True)
class _Log:
    """How the driver of an IOMMU tells of a refused access."""

    wanted: re.Pattern[str]
    faults: Callable[[re.Match[str]], list[Fault]]
    #: Refusals in five seconds of which the kernel logs something each.
    most: int


def _of_vtd(found: re.Match[str]) -> list[Fault]:
    return [(found[1], found[2], int(found[3], 16))]


def _of_virtio(found: re.Match[str]) -> list[Fault]:
    """Its endpoints are numbered by bus, device and function; each word of memory is a line, of
    which the kernel writes ten in five seconds. Where
    nothing is mapped, the emulator does not tell the direction: it may be either."""
    number = int(found[1])
    device = f"{number >> 8:02x}:{number >> 3 & 0x1F:02x}.{number & 7}"
    directions = {"W": ["Write"], "R": ["Read"]}.get(found[3], ["Read", "Write"])
    return [(direction, device, int(found[2], 16)) for direction in directions]


_LOGS = {
    "VT-d": _Log(
        re.compile(
            r"DMAR: \[DMA (Read|Write)[^]]*\] Request device \[([0-9a-f:.]+)\] fault addr (\w+)"
        ),
        _of_vtd,
        most=3,
    ),
    "virtio-iommu": _Log(
        re.compile(r"virtio_iommu .*page fault from EP (\d+) at (\w+) \[(\w*)\]"),
        _of_virtio,
        most=2,
    ),
}
_BLOCKED = re.compile(
    r"DMAR: \[INTR-REMAP[^]]*\] Request device \[([0-9a-f:.]+)\] fault index (\w+) "
    r"\[fault reason (\w+)\]"
)
#: When something was refused.
_refusals: list[float] = []


def unread() -> None:
    """Notes that something is refused though nobody looks: the kernel logs less for a while."""
    _refusals.append(time.monotonic())


@contextmanager
def faults() -> Iterator[Callable[[], list[Fault]]]:
    """What the IOMMU logs of refused accesses from now on. Who asks for that where it logs nothing
    is skipped, or fails, then: what was to be seen in memory has been looked at."""
    kind = edu.find().iommu_kind
    if log := _LOGS.get(str(kind)):
        with _told(log.wanted, log.most) as read:
            yield lambda: [fault for found in read() for fault in log.faults(found)]
    else:
        yield lambda: lacks("fault-log", f"{kind} logs no refused access here")


@contextmanager
def blocked() -> Iterator[Callable[[], list[tuple[int, int]]]]:
    """What VT-d logs of blocked interrupt messages from now on: entry, reason."""
    if edu.find().iommu_kind != "VT-d":
        lacks("vtd", "no VT-d here")
    with _told(_BLOCKED, _LOGS["VT-d"].most) as read:
        yield lambda: [(int(found[2], 16), int(found[3], 16)) for found in read()]


@contextmanager
def _told(wanted: re.Pattern[str], most: int) -> Iterator[Callable[[], list[re.Match[str]]]]:
    """What the kernel logs from now on that is `wanted`; waits for the first of it."""
    if len([when for when in _refusals if time.monotonic() - when < 6]) >= most:
        time.sleep(6)
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(log, 0, os.SEEK_END)
    told: list[re.Match[str]] = []

    def read() -> list[re.Match[str]]:
        deadline = time.monotonic() + limit(2)
        while not told and time.monotonic() < deadline:
            try:
                while True:
                    line = os.read(log, 8192).decode(errors="replace")
                    if found := wanted.search(line):
                        told.append(found)
            except BlockingIOError:
                time.sleep(0.01)
        return told

    try:
        yield read
    finally:
        os.close(log)
        unread()
