"""The emulator's machine protocol over an already connected socket."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

from .errors import LabError


class Qmp:
    """One QMP session; the greeting is read on creation."""

    def __init__(self, connection: socket.socket, timeout: float = 60.0) -> None:
        """Take the connection and leave the negotiation mode."""
        self._connection = connection
        self.limit(timeout)
        self._file = connection.makefile("rwb")
        self._receive()
        self.execute("qmp_capabilities")

    def limit(self, timeout: float) -> None:
        """Wait so many seconds for an answer from now on."""
        self._connection.settimeout(timeout)

    def ask(self, line: str) -> str:
        """What the monitor for people answers to a line."""
        return str(self.execute("human-monitor-command", **{"command-line": line}))

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command and return its result."""
        request = {"execute": command, "arguments": arguments}
        try:
            self._file.write(json.dumps(request).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise LabError(f"emulator: {command}: {error}") from error
        while True:
            reply = self._receive()
            if "error" in reply:
                raise LabError(f"emulator: {command}: {reply['error']['desc']}")
            if "return" in reply:
                return reply["return"]

    def wait_for(self, command: str, states: set[str], timeout: float = 60.0) -> str:
        """Ask `command` until its status is one of `states`."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            status = str(self.execute(command).get("status", ""))
            if status in states:
                return status
            time.sleep(0.02)
        raise LabError(f"emulator: {command} did not reach {' or '.join(sorted(states))}")

    def _receive(self) -> dict[str, Any]:
        try:
            line = self._file.readline()
        except OSError as error:
            raise LabError(f"the emulator's monitor: {error}") from error
        if not line:
            raise LabError("the emulator ended before it answered")
        reply: dict[str, Any] = json.loads(line)
        return reply
