"""What the kernel logs of accesses that an IOMMU has refused."""

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
#: When accesses were refused.
_refusals: list[float] = []


@contextmanager
def faults() -> Iterator[Callable[[], list[tuple[str, str, int]]]]:
    """What VT-d logs of refused accesses from now on: direction, device, address."""
    if edu.find().iommu_kind != "VT-d":
        lacks("vtd", "no VT-d here")
    # The kernel logs three of them in five seconds.
    if len([when for when in _refusals if time.monotonic() - when < 6]) >= 3:
        time.sleep(6)
    _refusals.append(time.monotonic())
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(log, 0, os.SEEK_END)
    told: list[tuple[str, str, int]] = []

    def read() -> list[tuple[str, str, int]]:
        deadline = time.monotonic() + limit(2)
        while not told and time.monotonic() < deadline:
            try:
                while True:
                    line = os.read(log, 8192).decode(errors="replace")
                    if found := _FAULT.search(line):
                        told.append((found[1], found[2], int(found[3], 16)))
            except BlockingIOError:
                time.sleep(0.01)
        return told

    try:
        yield read
    finally:
        os.close(log)
