"""A guest that drives the emulator's device ``edu``."""

from __future__ import annotations

import time

import edu
import vmlet
from conftest import limit
from guests.driven import Driven

#: Config space of bus 0, and how far apart buses are: each root port has the bus of its number.
_ECAM, _BUS = 0xE0000000, 1 << 20
_COMMAND, _BAR, _CAPABILITIES = 4, 0x10, 0x34
#: Of the command register.
MEMORY, MASTER = 2, 4


class Guest(Driven):
    """A guest that drives the device in a root port, or several in turn."""

    def __init__(self, vm: vmlet.VM, port: int = 1) -> None:
        super().__init__(vm)
        self.turn_to(port)

    def turn_to(self, port: int) -> None:
        """What follows is done with the device in that root port."""
        self.config = _ECAM + port * _BUS
        self.bar = 0

    def place(self, register: int = _BAR) -> int:
        """Gives a BAR the first addresses that the port forwards; where that is."""
        port = self.config - _ECAM >> 20
        address = self.read(_ECAM + (port << 15) + 0x20) << 16 & 0xFFF00000
        self.write(self.config + register, address)
        return address

    def find(self) -> None:
        """Switches the device on."""
        self.bar = self.read(self.config + _BAR) & ~0xF
        self.serve(self.bar)
        self.write(self.config + _COMMAND, MEMORY | MASTER)

    def capability(self, wanted: int) -> int:
        """Where in config space a capability is."""
        at = self.read(self.config + _CAPABILITIES) & 0xFF
        while at:
            found = self.read(self.config + at)
            if found & 0xFF == wanted:
                return self.config + at
            at = found >> 8 & 0xFF
        raise LookupError(f"no capability {wanted}")

    def copy(self, source: int, target: int, count: int, command: int = 0) -> None:
        """Has the device copy, and waits for the end."""
        for register, value in (
            (edu.SOURCE, source),
            (edu.TARGET, target),
            (edu.COUNT, count),
            (edu.COMMAND, command | edu.START),
        ):
            self.write(self.bar + register, value)
        deadline = time.monotonic() + limit(5)
        while self.read(self.bar + edu.COMMAND) & edu.START:
            assert time.monotonic() < deadline, "the device does not end its copy"
            time.sleep(0.01)
