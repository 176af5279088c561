"""One process of the emulator without file sharing: its start, its screen and its end."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
import tty
from contextlib import suppress
from pathlib import Path
from typing import IO

from ..errors import LabError
from ..machine import guard
from . import kernel, programs
from .config import BOOT_DISK_SIZE, INITRD_ADDRESS, Layout, render

EMULATOR = "bochs-bin"
_SCREEN_LIMIT = 30.0  # seconds until the emulator has opened its screen
_SCREEN = re.compile(rb'connected to screen "(/dev/pts/\d+)"')


def prepare(layout: Layout, bzimage: Path, entry: int, command_line: str) -> None:
    """Write the run's files: the boot disk, the kernel's parameters, the configuration."""
    sector = programs.compiled("boot.S", f"ENTRY={entry:#x}").read_bytes()
    if len(sector) != 512:
        raise LabError(f"the boot sector has {len(sector)} bytes")
    layout.boot_disk.write_bytes(sector.ljust(BOOT_DISK_SIZE, b"\0"))
    initrd = (INITRD_ADDRESS, layout.initrd.stat().st_size)
    layout.parameters.write_bytes(
        kernel.parameters(bzimage.read_bytes(), layout.kernel_address, initrd, command_line)
    )
    (layout.folder / "config").write_text(render(layout))
    # The emulator starts in its debugger: "continue".
    (layout.folder / "debugger").write_text("c\n")


class Machine:
    """A started emulator; leaving the context ends it."""

    def __init__(self, layout: Layout) -> None:
        """Start it with the prepared files of `layout`."""
        folder = layout.folder
        self._complaints = folder / "complaints"
        environment = os.environ | {
            "LD_PRELOAD": str(programs.compiled("chunked_read.c")),
            "TERM": "xterm",
        }
        command = [*guard(), EMULATOR, "-q", "-f", str(folder / "config")]
        with self._complaints.open("wb") as complaints:
            self._process = subprocess.Popen(
                [*command, "-rc", str(folder / "debugger")], env=environment, cwd=folder,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints,
                start_new_session=True,
            )  # fmt: skip
        self._screen = threading.Thread(target=self._drain_screen, daemon=True)
        self._screen.start()

    def __enter__(self) -> Machine:
        """Return the machine itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the emulator if it still runs."""
        # It may hang on a mere request to end.
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._screen.join()
        self.output().close()

    def output(self) -> IO[bytes]:
        """What comes out of the debug port, between lines of the emulator's own."""
        if self._process.stdout is None:
            raise LabError("the emulator has no output")
        return self._process.stdout

    def complaints(self) -> str:
        """What the emulator printed on stderr."""
        return self._complaints.read_text(errors="replace")

    def _drain_screen(self) -> None:
        """Read the terminal that the emulator draws on, which stops when nobody does."""
        screen = self._find_screen()
        if screen is None:
            return
        # The terminal goes with the emulator, which ends a read with an error.
        with suppress(OSError), open(screen, "r+b", buffering=0, opener=_not_ours) as terminal:
            # Raw: an echo would fill the other direction.
            tty.setraw(terminal.fileno())
            while terminal.read(65536):
                pass

    def _find_screen(self) -> str | None:
        end = time.monotonic() + _SCREEN_LIMIT
        while time.monotonic() < end and self._process.poll() is None:
            found = _SCREEN.search(self._complaints.read_bytes())
            if found:
                return found[1].decode()
            time.sleep(0.05)
        return None


def _not_ours(path: str, flags: int) -> int:
    """Open a terminal without making it the one that controls this process."""
    return os.open(path, flags | os.O_NOCTTY | os.O_CLOEXEC)
