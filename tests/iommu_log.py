"""What the kernel logs of accesses and messages that an IOMMU has refused."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import edu
from conftest import lacks, limit

_FAULT = re.compile(
    r"DMAR: \[DMA (Read|Write)[^]]*\] Request device \[([0-9a-f:.]+)\] fault addr (\w+)"
)
_BLOCKED = re.compile(
    r"DMAR: \[INTR-REMAP[^]]*\] Request device \[([0-9a-f:.]+)\] fault index (\w+) "
    r"\[fault reason (\w+)\]"
)
#: When something was refused.
_refusals: list[float] = []


@contextmanager
def faults() -> Iterator[Callable[[], list[tuple[str, str, int]]]]:
    """What VT-d logs of refused accesses from now on: direction, device, address."""
    with _told(_FAULT) as read:
        yield lambda: [(kind, device, int(at, 16)) for kind, device, at in read()]


@contextmanager
def blocked() -> Iterator[Callable[[], list[tuple[int, int]]]]:
    """What VT-d logs of blocked interrupt messages from now on: entry, reason."""
    with _told(_BLOCKED) as read:
        yield lambda: [(int(entry, 16), int(reason, 16)) for _, entry, reason in read()]


@contextmanager
def _told(wanted: re.Pattern[str]) -> Iterator[Callable[[], list[tuple[str, ...]]]]:
    """What the kernel logs from now on that is `wanted`; waits for the first of it."""
    if edu.find().iommu_kind != "VT-d":
        lacks("vtd", "no VT-d here")
    # The kernel logs three of them in five seconds.
    if len([when for when in _refusals if time.monotonic() - when < 6]) >= 3:
        time.sleep(6)
    _refusals.append(time.monotonic())
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(log, 0, os.SEEK_END)
    told: list[tuple[str, ...]] = []

    def read() -> list[tuple[str, ...]]:
        deadline = time.monotonic() + limit(2)
        while not told and time.monotonic() < deadline:
            try:
                while True:
                    line = os.read(log, 8192).decode(errors="replace")
                    if found := wanted.search(line):
                        told.append(found.groups())
            except BlockingIOError:
                time.sleep(0.01)
        return told

    try:
        yield read
    finally:
        os.close(log)
