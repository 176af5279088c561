"""What the command line needs of a virtual machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import vmlet


class Event(Protocol):
    """What ended a run."""

    @property
    def kind(self) -> str:
        """Such as ``poweroff`` or ``panic``."""

    @property
    def vcpu(self) -> int | None:
        """The vCPU that caused it."""

    @property
    def source(self) -> str:
        """What it was seen by."""

    @property
    def detail(self) -> str:
        """What else is known."""


class Console(Protocol):
    """The guest's serial line."""

    def write(self, data: bytes, /) -> int:
        """Types into the guest; how many bytes it took."""

    def read(self, limit: int | None = None, timeout: float | None = 0) -> bytes:
        """What the guest printed; waits for the first byte."""


class Vcpu(Protocol):
    """A processor of the guest."""

    @property
    def regs(self) -> Any:
        """Its general registers."""


class Machine(Protocol):
    """A virtual machine, as ``vmlet.VM`` is one."""

    @property
    def console(self) -> Console:
        """Its serial line."""

    @property
    def vcpus(self) -> Sequence[Vcpu]:
        """Its processors."""

    @property
    def state(self) -> str:
        """Such as ``running``."""

    @property
    def engine(self) -> str:
        """Such as ``kvm``."""

    def start(self) -> object:
        """Starts the guest."""

    def pause(self) -> object:
        """Halts its processors."""

    def resume(self) -> object:
        """Lets them go on."""

    def stop(self) -> object:
        """Ends the run."""

    def close(self) -> object:
        """Frees all of it."""

    def wait(self, timeout: float | None = None) -> Event:
        """What ended the run."""


MakeMachine = Callable[..., Machine]
"""Makes one from the keyword arguments of ``vmlet.VM``."""


def default_machine(**options: Any) -> Machine:
    """A ``vmlet.VM``."""
    machine: Machine = vmlet.VM(**options)
    return machine
