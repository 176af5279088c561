"""The exceptions of vmlet: one tree, each with what the user can do about it."""

from __future__ import annotations

import builtins

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from vmlet.events import Instruction

__all__ = [
    "ClosedError",
    "ConfigError",
    "DeviceError",
    "Error",
    "ForkedProcessError",
    "GuestError",
    "HostError",
    "KernelError",
    "ReentryError",
    "RefusedError",
    "StateError",
    "TimeoutError",
    "UnsupportedError",
]


class Error(Exception):
    """Any error of vmlet.

    ``message`` says what happened, ``remedy`` what to do about it (None: nothing is known);
    ``str()`` gives both.
    """

    message: str
    remedy: str | None

    def __init__(self, message: str = "", *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n{self.remedy}" if self.remedy else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, dict(self.__dict__))


class ConfigError(Error, ValueError):
    """What was asked for cannot be built."""


class KernelError(ConfigError):
    """A kernel, an initramfs or a kernel package is not usable."""


class UnsupportedError(Error):
    """This host or this version cannot do what was asked.

    ``features`` names the processor's features that stand in the way, as /proc/cpuinfo does
    (empty: none do).
    """

    features: tuple[str, ...]

    def __init__(
        self,
        message: str = "",
        *,
        remedy: str | None = None,
        features: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.features = features


class GuestError(Error):
    """The guest is not in a state that allows the request.

    ``instruction`` is the one that the engine does not carry out and that ended the guest's run
    (None: it was not that).
    """

    instruction: Instruction | None

    def __init__(
        self,
        message: str = "",
        *,
        remedy: str | None = None,
        instruction: Instruction | None = None,
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.instruction = instruction


class TimeoutError(Error, builtins.TimeoutError):
    """The time given has passed."""


class RefusedError(Error, builtins.ConnectionRefusedError):
    """The guest does not take a connection."""


class StateError(Error):
    """The virtual machine is not in a state that allows the request."""


class ClosedError(StateError):
    """The virtual machine is closed."""


class ReentryError(StateError):
    """A callback of a device asked for something that would wait for this very callback."""


class DeviceError(Error):
    """A device written in Python raised an exception, which is the ``__cause__``, or gave what it
    may not give. The VM's run is over.

    ``device`` is the device, ``callback`` the method's name.
    """

    device: Any
    callback: str

    def __init__(
        self,
        message: str = "",
        *,
        remedy: str | None = None,
        device: Any = None,
        callback: str = "",
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.device = device
        self.callback = callback

    def __reduce__(self) -> tuple[Any, ...]:
        # A device lives in one process, as its VM does.
        return _rebuild, (type(self), self.message, {**self.__dict__, "device": None})


class ForkedProcessError(Error):
    """The virtual machine belongs to the process that made it, not to its child."""


class HostError(Error, OSError):
    """The host refused; ``errno`` says how."""

    def __init__(
        self, message: str = "", *, errno: int | None = None, remedy: str | None = None
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.errno = errno
        self.strerror = message

    def __reduce__(self) -> tuple[Any, ...]:
        state = {**self.__dict__, "errno": self.errno, "strerror": self.strerror}
        return _rebuild, (type(self), self.message, state)


def _rebuild(kind: type[Error], message: str, state: dict[str, Any]) -> Error:
    """Makes an exception again on the other side of a pickle."""
    error = kind(message)
    for name, value in state.items():
        setattr(error, name, value)
    return error
