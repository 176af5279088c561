"""What all devices written in Python share."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from vmlet._core import DeviceLink, Irq
from vmlet.errors import ConfigError, StateError, TimeoutError

if TYPE_CHECKING:
    from vmlet.vm import VM


#: Device, kind, first address, addresses, pin, and for posted writes room and seconds.
Spec = tuple["Device", str, int, int, int | None, tuple[int, float] | None]


class Device:
    """A device written in Python; `MmioDevice` and `PioDevice` are what to derive from.

    Its methods are callbacks: they run on the thread of the vCPU whose access they serve, which
    waits for them, and never overlap. An exception ends the VM's run, and ``vm.wait()`` raises it
    as the cause of a `DeviceError`. A device is on one VM at a time.
    """

    _link: DeviceLink | None = None
    _vm: weakref.ref[VM] | None = None

    @property
    def vm(self) -> VM:
        """The VM that it is on. Its ``memory`` and the registers of `vcpu` can be used here."""
        vm = None if self._vm is None else self._vm()
        if vm is None:
            raise _on_no_vm(self)
        return vm

    @property
    def vcpu(self) -> int | None:
        """The number of the vCPU that waits for the callback that the caller is in, if one does."""
        return self._linked().vcpu

    @property
    def irq(self) -> Irq:
        """The interrupt line; without an ``irq`` given it leads nowhere."""
        return self._linked().irq

    def end_run(self, detail: str = "") -> None:
        """Ends the VM's run, from anywhere: the event is "stopped", its source "device"."""
        self._linked().end_run(detail)

    def deliver(self, timeout: float | None = None) -> None:
        """Waits until all writes posted so far are delivered; not in a callback of its VM."""
        if not self._linked().deliver(timeout):
            raise TimeoutError(
                f"posted writes were not delivered within {timeout} s",
                remedy="Make the callback that runs return.",
            )

    def stats(self) -> dict[str, int]:
        """What Python cost the guest.

        ``calls`` of `read` and `write` and the nanoseconds that vCPUs waited for them, ``call_ns``;
        posted ``writes``, the ``batches`` they came in, and ``batch_ns``.
        """
        return self._linked().stats()

    def reset(self) -> None:
        """Back to the state after power-on."""

    def save(self) -> bytes:
        """The device's state as bytes, for a saved VM."""
        return b""

    def restore(self, state: bytes) -> None:
        """Takes over what `save` gave; to refuse it, raise."""

    def _linked(self) -> DeviceLink:
        if self._link is None:
            raise _on_no_vm(self)
        return self._link

    def _spec(self) -> Spec:
        """What the core has to know, of a device at fixed addresses."""
        raise ConfigError(
            f"{self!r} has no place", remedy="Derive from MmioDevice, PciDevice or another of them."
        )


def _on_no_vm(device: Device) -> StateError:
    return StateError(
        f"{type(device).__name__} is on no VM", remedy="Give it to one: vmlet.VM(devices=[...])."
    )


def number(what: str, value: object, least: int, most: int) -> int:
    """``value``, if it is an int in that range."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(
            f"{what} cannot be {value!r}", remedy=f"Give a number from {least:#x} to {most:#x}."
        )
    return value
