"""What is told of an L1 that stands still, with a script in place of the emulator."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pytest

from labkit import standstill
from labkit.qmp import Qmp


class Emulator:
    """Answers the monitor, and on the console as L1's kernel does after a break."""

    def __init__(self) -> None:
        self.qmp, self._theirs = socket.socketpair()
        self.console, self._serial = socket.socketpair()
        self.breaks = 0
        self.deaf = False

    def serve(self) -> None:
        with self._theirs.makefile("rwb", buffering=0) as file:
            file.write(b'{"QMP": {}}\n')
            for line in iter(file.readline, b""):
                request = json.loads(line)
                if request["execute"] == "chardev-send-break":
                    self.breaks += 1
                    threading.Thread(target=self._answer, daemon=True).start()
                asked = request["arguments"].get("command-line", "")
                file.write(json.dumps({"return": f"CPU#0: {asked}"}).encode() + b"\n")

    def _answer(self) -> None:
        key = self._serial.recv(1)
        if not self.deaf:
            self._serial.sendall(b"sysrq: " + key + b"\r\n")

    def monitor(self) -> Qmp:
        return Qmp(self.qmp)

    def channel(self, name: str) -> socket.socket:
        return {"console": self.console}[name]

    def close(self) -> None:
        for end in (self.qmp, self._theirs, self.console, self._serial):
            end.close()


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """One that runs."""
    monkeypatch.setattr(standstill, "_QUIET", 0.1)
    monkeypatch.setattr(standstill, "_BETWEEN", 0.01)
    made = Emulator()
    thread = threading.Thread(target=made.serve)
    thread.start()
    yield made
    made.qmp.shutdown(socket.SHUT_RDWR)
    thread.join()
    made.close()


def test_registers_twice_and_what_the_kernel_answers_are_told(emulator: Emulator) -> None:
    told = standstill.stacks(emulator)
    assert told.count("info registers -a") == told.count("info lapic 0") == 2
    assert [line for line in told.splitlines() if "sysrq" in line] == [
        f"sysrq: {key}" for key in standstill._REQUESTS
    ]
    assert told.endswith(f"sysrq: {standstill._REQUESTS[-1]}\n")


def test_a_kernel_that_answers_nothing_leaves_the_registers(emulator: Emulator) -> None:
    emulator.deaf = True
    told = standstill.stacks(emulator)
    assert told.count("info registers -a") == told.count("info lapic 0") == 2
    assert emulator.breaks == len(standstill._REQUESTS)
