"""Guests that work when they are told, for benchmarks of devices.

Such a guest prints "=ready", then serves lines of its console: "MODE COUNT" does its work and
prints "=MODE NANOSECONDS" by its own clock. Whoever serves one reads such lines from stdin and
answers each with two numbers: those nanoseconds, and nanoseconds of processor time that the VMM
has taken outside its vCPUs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import vmlet

_LIMIT = 600.0


class Guest(Protocol):
    """A guest that is ready."""

    def ask(self, line: str, pattern: re.Pattern[bytes]) -> int:
        """Types ``line`` and gives the number that ``pattern`` finds."""

    def threads(self) -> list[Path]:
        """The tasks of the VMM that run no guest code."""

    def close(self) -> None:
        """Ends it."""


class Ours:
    """A VM of this process."""

    def __init__(self, images: Sequence[str], *devices: vmlet.devices.Model) -> None:
        """Boot kernel, initramfs and command line with ``devices``."""
        kernel, initrd, cmdline = images
        self.vm = vmlet.VM(
            kernel=kernel,
            initramfs=initrd,
            cmdline=cmdline,
            memory="256M",
            engine="kvm",
            devices=devices,
        )
        self.vm.start()
        self.vm.console.expect("=ready", timeout=_LIMIT)

    def ask(self, line: str, pattern: re.Pattern[bytes]) -> int:
        self.vm.console.write(line)
        return int(self.vm.console.expect(pattern, timeout=_LIMIT)[1])

    def threads(self) -> list[Path]:
        return _tasks(os.getpid(), "vcpu")

    def close(self) -> None:
        self.vm.close()


class Qemu:
    """A guest of QEMU."""

    def __init__(self, command: Sequence[str], images: Sequence[str]) -> None:
        """Boot kernel, initramfs and command line with ``command``."""
        kernel, initrd, cmdline = images
        self.process = subprocess.Popen(
            [*command, "-kernel", kernel, "-initrd", initrd, "-append", cmdline],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.text = b""
        self._expect(re.compile(rb"(=ready)"))

    def _expect(self, pattern: re.Pattern[bytes]) -> bytes:
        assert self.process.stdout is not None
        while not (found := pattern.search(self.text)):
            piece = os.read(self.process.stdout.fileno(), 1 << 16)
            if not piece:
                raise SystemExit(f"QEMU ended: {self.text[-500:]!r}")
            self.text += piece
        self.text = self.text[found.end() :]
        return found[1]

    def ask(self, line: str, pattern: re.Pattern[bytes]) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode())
        self.process.stdin.flush()
        return int(self._expect(pattern))

    def threads(self) -> list[Path]:
        return _tasks(self.process.pid, "CPU ")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def _tasks(process: int, vcpu: str) -> list[Path]:
    tasks = list(Path(f"/proc/{process}/task").iterdir())
    return [task for task in tasks if vcpu not in _name_of(task)]


def _name_of(task: Path) -> str:
    try:
        return (task / "comm").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""  # ended


def _taken(tasks: list[Path]) -> int:
    """Nanoseconds of processor time of the tasks; one that has just ended counts no more."""
    return sum(_time_of(task) for task in tasks)


def _time_of(task: Path) -> int:
    try:
        return int((task / "schedstat").read_text().split()[0])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def serve(guest: Guest) -> None:
    """Serve the lines of stdin, then end the guest."""
    for line in sys.stdin:
        mode = line.split()[0]
        before = _taken(guest.threads())
        took = guest.ask(line, re.compile(rf"={mode} (\d+)\r?\n".encode()))
        print(took, _taken(guest.threads()) - before, flush=True)
    guest.close()
