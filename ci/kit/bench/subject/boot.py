"""All sides of the benchmark "boot-kvm": boots of one Linux guest, as far as init's first act.

`boot.py KERNEL INITRD CMDLINE -- QEMU FLAGS...` reads lines of stdin and answers each with three
numbers: nanoseconds of CLOCK_MONOTONIC to the marker, those from the start of guest code to it (0:
not known), and those that the guest's kernel says it has been running. "process" starts a Python
process that makes a VM (`once.py`), "vm" makes one here, "first" one whose kernel nobody has
unpacked before, and "qemu" starts QEMU.
"""

from __future__ import annotations

import mmap
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import vmlet

_LIMIT = 600.0
#: Bytes: several times what a guest of this benchmark has touched.
_FORGOTTEN = 256 << 20
_MARKER = b"=init"
_UPTIME = re.compile(rb"=init\r?\n=(\d+)\r?\n")


def forget() -> None:
    """Write to memory that is free, before each boot of any side.

    An emulated host takes a second or two longer to give out pages that held code of the guest
    before: it forgets its translations when they are written. Which side gets them is chance.
    """
    free = re.search(r"^MemFree: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    size = min(_FORGOTTEN, int(free[1]) << 9) if free else 0
    if size:
        with mmap.mmap(-1, size) as pages:
            for at in range(0, size, mmap.PAGESIZE):
                pages[at] = 1


def in_this_process(kernel: str, initrd: str, cmdline: str) -> tuple[int, int, int]:
    """The numbers of a VM made here."""
    begun = time.monotonic_ns()
    with vmlet.VM(
        kernel=kernel, initramfs=initrd, cmdline=cmdline, memory="256M", engine="kvm"
    ) as vm:
        started = time.monotonic_ns()
        vm.start()
        vm.console.expect(_MARKER, timeout=_LIMIT)
        marked = time.monotonic_ns()
        found = vm.console.expect(re.compile(rb"\n=(\d+)\r?\n"), timeout=_LIMIT)
    return marked - begun, marked - started, int(found[1])


def of_a_process(command: list[str]) -> tuple[int, int, int]:
    """The numbers of a process that prints what its guest prints."""
    begun = time.monotonic_ns()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        marked, text = 0, b""
        while not (found := _UPTIME.search(text)):
            piece = os.read(process.stdout.fileno(), 1 << 16)
            if not piece:
                raise SystemExit(f"{command[0]} ended before its guest's init: {text[-500:]!r}")
            text += piece
            if not marked and _MARKER in text:
                marked = time.monotonic_ns()
        process.kill()
    return marked - begun, 0, int(found[1])


def main() -> None:
    """Serve the lines of stdin."""
    at = sys.argv.index("--")
    images, qemu = sys.argv[1:at], sys.argv[at + 1 :]
    kernel, initrd, cmdline = images
    qemu += ["-kernel", kernel, "-initrd", initrd, "-append", cmdline]
    once = [sys.executable, "-B", str(Path(__file__).with_name("once.py")), *images]
    for line in sys.stdin:
        side = line.strip()
        forget()
        if side in ("vm", "first"):
            os.environ.pop("VMLET_KERNEL_CACHE", None)
            if side == "first":
                os.environ["VMLET_KERNEL_CACHE"] = ""
            numbers = in_this_process(kernel, initrd, cmdline)
        else:
            numbers = of_a_process(once if side == "process" else qemu)
        print(*numbers, flush=True)


if __name__ == "__main__":
    main()
