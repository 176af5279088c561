"""The devices that a VM is made with, and how they get onto it."""

from __future__ import annotations

from vmlet import logs
from vmlet._core import detach
from vmlet.errors import ConfigError, TimeoutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from vmlet._core import Machine
    from vmlet.devices import Device, Model
    from vmlet.vm import VM


class Fittings:
    """Devices by what becomes of them: the board's, and those that take a root port."""

    __slots__ = ("calls_python", "plugged", "specs", "written")

    def __init__(self, devices: Iterable[Device | Model]) -> None:
        #: What the core has to know of those at fixed addresses.
        self.specs: list[Any] = []
        #: Those that take a root port.
        self.plugged: list[Any] = []
        #: Those written in Python.
        self.written: list[Device] = []
        #: One in a root port is written in Python.
        self.calls_python = False
        # Nearly every VM has none, and does without what they import.
        if not isinstance(devices, tuple) or devices:
            self._sort(devices)

    def _sort(self, devices: Iterable[Device | Model]) -> None:
        from vmlet.devices import Device, Model

        if isinstance(devices, (str, bytes)) or not hasattr(devices, "__iter__"):
            raise ConfigError(f"devices cannot be {devices!r}", remedy="Give a list of devices.")
        for device in devices:
            if isinstance(device, Device):
                self._take(device)
            elif not isinstance(device, Model):
                raise ConfigError(
                    f"{device!r} is no device",
                    remedy="Give one such as vmlet.Disk, or derive one from vmlet.MmioDevice.",
                )
            if hasattr(device, "_plug"):
                self.plugged.append(device)
            else:
                self.specs.append(device._spec())

    def _take(self, device: Device) -> None:
        if any(device is other for other in self.written):
            raise ConfigError(f"{device!r} is there twice", remedy="Make two devices.")
        _refuse_taken(device)
        self.written.append(device)
        self.calls_python |= hasattr(device, "_plug")

    def plug(self, vm: VM, machine: Machine, *, again: bool = False) -> None:
        """Puts devices into root ports, or back into those they had; a VM that lacks one of them is
        closed."""
        for device in self.written:
            _belongs(device, vm)
        if self.plugged:
            logs.follow(devices=True)
        try:
            for number, device in enumerate(self.plugged, 1):
                device._plug(machine, number if again else None)
        except BaseException as error:
            machine.close(False)
            if isinstance(error, ValueError) and not isinstance(error, ConfigError):
                raise ConfigError(str(error)) from None
            raise


def _belongs(device: Device, vm: VM) -> None:
    import weakref

    device._vm = weakref.ref(vm)


def _refuse_taken(device: Device) -> None:
    if device._link is not None and not device._link.closed:
        raise ConfigError(
            f"{device!r} is on a VM", remedy="Detach it or close that VM, or make another device."
        )


def plug_later(vm: VM, machine: Machine, device: Device | Model, port: int | None) -> int:
    """Puts a device into a root port of a VM that is there; says which."""
    machine.refuse_inside("attach")
    from vmlet.devices import Device, Model

    if isinstance(device, Device):
        if not hasattr(device, "_plug"):
            raise ConfigError(
                f"{device!r} has its place on the board and cannot come later",
                remedy="Give it to vmlet.VM(devices=[...]), or derive it from vmlet.PciDevice.",
            )
        _refuse_taken(device)
        _belongs(device, vm)
    elif not isinstance(device, Model):
        raise ConfigError(f"{device!r} is no device", remedy="Give one such as vmlet.Disk.")
    logs.follow(devices=True)
    try:
        return device._plug(machine, None if port is None else _slot(port))
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(str(error)) from None


def unplug(machine: Machine, port: int, timeout: float | None, *, pull: bool) -> None:
    """Takes the device out of a root port."""
    machine.refuse_inside("detach")
    if not detach(machine, _slot(port), pull, timeout):
        raise TimeoutError(
            f"the guest has not let go of the device in port {port} after {timeout} s",
            remedy="Give it more time (Linux takes five seconds), or pull the device.",
        )


def _slot(port: object) -> int:
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 256:
        raise ConfigError(f"port cannot be {port!r}", remedy="Give a number from 1 on.")
    return port
