"""The subject of the rows of maps in the benchmark "vfio", by `vmlet.vfio`.

`dma.py ADDRESS PAGES` opens the device and serves lines of stdin. "map SIZE" maps so many bytes of
new memory whose pages are "2m" or "4k" large and unmaps them, and prints the nanoseconds of both.
"await COUNT" has a thread write to an interrupt's eventfd so often, each time when a coroutine
awaits that, and prints the median nanoseconds from the write to the coroutine; then those of an
eventfd and a callback of the event loop alone.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import statistics
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from vmlet import vfio

_SET_THP_DISABLE = 41  # prctl(2)
_QUIET_SECONDS = 0.002


def map_and_unmap(device: vfio.Device, size: int, pages: str) -> tuple[int, int]:
    """Nanoseconds of both."""
    begin = time.monotonic_ns()
    buffer = device.dma(size)
    mapped = time.monotonic_ns() - begin
    check_pages(size, pages)
    begin = time.monotonic_ns()
    buffer.unmap()
    return mapped, time.monotonic_ns() - begin


def check_pages(size: int, pages: str) -> None:
    """Fail when memory is not of the pages that the row is about."""
    text = Path("/proc/self/smaps_rollup").read_text()
    found = re.search(r"AnonHugePages: +(\d+) kB", text)
    huge = int(found[1]) * 1024 if found else 0
    # The interpreter itself may have got one before they were switched off.
    if (pages == "2m" and huge < size) or (pages == "4k" and huge > size // 100):
        raise SystemExit(f"{huge} bytes are of huge pages, where {size} are to be {pages}")


async def awaited(count: int, fd: int, wait: Callable[[], Awaitable[object]]) -> int:
    """The median nanoseconds from writes to `fd` until `wait` is over."""
    begun = threading.Semaphore(0)
    written = [0]

    def write() -> None:
        for _ in range(count):
            begun.acquire()
            time.sleep(_QUIET_SECONDS)  # the loop sleeps by then
            written[0] = time.monotonic_ns()
            os.eventfd_write(fd, 1)

    thread = threading.Thread(target=write)
    thread.start()
    times = []
    for _ in range(count):
        begun.release()
        await wait()
        times.append(time.monotonic_ns() - written[0])
    thread.join()
    return int(statistics.median(times))


async def of_interrupt(device: vfio.Device, count: int) -> int:
    """By an interrupt of the device."""
    (interrupt,) = device.enable("MSI-X")

    async def arrival() -> None:
        await interrupt

    took = await awaited(count, interrupt.fileno(), arrival)
    device.disable()
    return took


async def of_loop(count: int) -> int:
    """By what the event loop has for it, and nothing else."""
    loop = asyncio.get_running_loop()
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    waiting = [loop.create_future()]

    def ring() -> None:
        os.eventfd_read(fd)
        waiting[0].set_result(None)

    async def arrival() -> None:
        waiting[0] = loop.create_future()
        await waiting[0]

    loop.add_reader(fd, ring)
    took = await awaited(count, fd, arrival)
    loop.remove_reader(fd)
    os.close(fd)
    return took


def main() -> None:
    """Serve the lines of stdin."""
    address, pages = sys.argv[1:]
    if pages == "4k" and ctypes.CDLL(None).prctl(_SET_THP_DISABLE, 1, 0, 0, 0):
        raise SystemExit("huge pages cannot be switched off")
    with vfio.open(address) as device:
        for line in sys.stdin:
            action, number = line.split()
            if action == "map":
                print(*map_and_unmap(device, int(number), pages), flush=True)
            else:
                ours = asyncio.run(of_interrupt(device, int(number)))
                print(ours, asyncio.run(of_loop(int(number))), flush=True)


if __name__ == "__main__":
    main()
