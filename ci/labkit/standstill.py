"""Where an L1 stands that says nothing any more: its processors, timers and blocked tasks."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Protocol

from .errors import LabError
from .qmp import Qmp

# Requests to L1's kernel (Linux, admin-guide/sysrq): all messages reach the console, then its
# timers, stacks of all tasks, of those that wait without an end, of the processors that are busy.
_REQUESTS = "9qtwl"
_QUIET = 2.0  # seconds without more on the console after which an answer is complete
_ANSWER = 30.0  # seconds for one answer at most
_MONITOR = 10.0  # seconds for the emulator itself to answer
_BETWEEN = 1.0  # seconds between two looks at the processors


class Emulated(Protocol):
    """What is asked: the emulator by its monitor, L1's kernel by its console."""

    def monitor(self) -> Qmp:
        """The monitor."""

    def channel(self, name: str) -> socket.socket:
        """Our end of the console."""


def stacks(machine: Emulated) -> str:
    """What the emulator and L1's kernel say of themselves; as much as still answers."""
    told = []
    try:
        monitor = machine.monitor()
        monitor.limit(_MONITOR)
        for _ in range(2):
            registers = monitor.ask("info registers -a")
            processors = range(registers.count("CPU#"))
            told += [registers, *(monitor.ask(f"info lapic {number}") for number in processors)]
            time.sleep(_BETWEEN)
        for request in _REQUESTS:
            monitor.execute("chardev-send-break", id="console")
            machine.channel("console").sendall(request.encode())
            told.append(_answer(machine))
    except (LabError, OSError) as error:
        told.append(f"no more: {error}")
    return "\n".join(told)


def _answer(machine: Emulated) -> str:
    console = machine.channel("console")
    end = time.monotonic() + _ANSWER
    answer = b""
    console.settimeout(_QUIET)
    with contextlib.suppress(TimeoutError):
        while time.monotonic() < end and (data := console.recv(65536)):
            answer += data
    return answer.decode(errors="replace").replace("\r", "")
