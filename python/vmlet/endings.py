"""What becomes of VMs that are open when the interpreter ends."""

from __future__ import annotations

import atexit

from vmlet import logs  # noqa: F401 - its end is registered first and so comes last
from vmlet._core import Machine
from vmlet.errors import ForkedProcessError, TimeoutError

#: Seconds that a callback of a device may take where nobody is left to wait for it.
CALLBACK_AT_END = 0.5

#: Machines to be closed before the interpreter goes: their threads must not outlive it. Who closes
#: one takes it out (a set of weak references would bring a module that takes long to import).
alive: set[Machine] = set()


@atexit.register
def _close_all() -> None:
    for machine in list(alive):
        # A forked child has its parent's machines in the set, and nothing to close.
        try:
            _close_at_end(machine)
        except ForkedProcessError:
            continue


def _close_at_end(machine: Machine) -> None:
    try:
        machine.close(False, CALLBACK_AT_END)
    except TimeoutError:
        # A callback in a loop gets an exception; one that waits in C goes down with the process.
        machine.interrupt_callbacks()
        try:
            machine.close(False, CALLBACK_AT_END)
        except TimeoutError:
            return
