"""A driver of the emulator's device ``edu`` (docs/specs/edu.rst of QEMU), which computes,
interrupts and copies 4 KiB of its own memory to and from addresses it is told."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from conftest import lacks, limit
from killed import killed
from vmlet import host, vfio

VENDOR, DEVICE = 0x1234, 0x11E8
#: Registers.
ID, LIVENESS, FACTORIAL, STATUS = 0x00, 0x04, 0x08, 0x20
RAISED, RAISE, ACKNOWLEDGE = 0x24, 0x60, 0x64
SOURCE, TARGET, COUNT, COMMAND = 0x80, 0x88, 0x90, 0x98
#: Where the device's own memory is, as it sees it.
OWN = 0x40000
#: Commands: start, from the device to memory, interrupt at the end.
START, TO_MEMORY, INTERRUPT = 1, 2, 4
#: What the interrupt at the end of a copy raises.
COPIED = 0x100
#: It does DMA to addresses of 28 bits.
HIGHEST = (1 << 28) - 1


def find() -> host.PciDevice:
    """One that shares its group with no other."""
    wanted = VENDOR, DEVICE
    all_of_them = (
        one
        for one in host.pci_devices()
        if (one.vendor, one.device) == wanted and not (one.group and len(one.group.members) > 1)
    )
    found = next(all_of_them, None)
    if found is None:
        lacks("edu", "this host has no such device")
    return found


@contextmanager
def bound() -> Iterator[str]:
    """The address of the device, given to VFIO meanwhile; or of one that root has given it."""
    if given := os.environ.get("VMLET_BOUND"):
        yield given
        return
    address = find().address
    vfio.bind(address)
    try:
        yield address
    finally:
        vfio.release(address)


def shared() -> tuple[str, str, str]:
    """Three functions of one group: such a device, one that a driver of the host has, and another
    such device."""
    groups = [
        one.group for one in host.pci_devices() if (one.vendor, one.device) == (VENDOR, DEVICE)
    ]
    found = next((group for group in groups if group and len(group.members) == 3), None)
    if found is None:
        lacks("shared-group", "no group of three functions is here")
    first, second, third = (member.address for member in found.members)
    return first, second, third


#: The network card with virtual functions that the lab has beside it.
CARD = (0x8086, 0x10C9)


def card() -> host.PciDevice:
    """That card; elsewhere a card that looks like it may be what the host is reached by."""
    same = (one for one in host.pci_devices() if (one.vendor, one.device) == CARD)
    found = next(same, None)
    if found is None or "VMLET_LAB" not in os.environ:
        lacks("sriov", "only a card of the lab is taken from its driver")
    return found


@contextmanager
def killed_with_functions(address: str, count: int) -> Iterator[int]:
    """A process that has so many virtual functions for itself, and is killed at the end."""
    ready, made = os.pipe()

    def work() -> None:
        with host.pci_device(address).vfs(count):
            os.write(made, b"made")
            time.sleep(1000)

    try:
        with killed(work) as number:
            os.close(made)
            assert os.read(ready, 4) == b"made"
            yield number
    finally:
        os.close(ready)


class Edu:
    """The device behind its registers."""

    def __init__(self, device: vfio.Device) -> None:
        self.device = device
        self.registers = device.bars[0]

    def copy(self, source: int, target: int, count: int, command: int = 0) -> None:
        """Has it copy and waits for the end, by looking."""
        self.start(source, target, count, command)
        deadline = time.monotonic() + limit(5)
        while self.registers.read(COMMAND) & START:
            assert time.monotonic() < deadline, "the device does not end its copy"
            time.sleep(0.01)

    def start(self, source: int, target: int, count: int, command: int = 0) -> None:
        """Has it copy."""
        for register, value in ((SOURCE, source), (TARGET, target), (COUNT, count)):
            self.registers.write(register, value)
        self.registers.write(COMMAND, command | START)

    def fetch(self, iova: int, count: int) -> None:
        """From memory to the device."""
        self.copy(iova, OWN, count)

    def store(self, iova: int, count: int) -> None:
        """From the device to memory."""
        self.copy(OWN, iova, count, TO_MEMORY)

    def acknowledge(self) -> int:
        """What it interrupted for; it stops doing so."""
        raised = self.registers.read(RAISED)
        self.registers.write(ACKNOWLEDGE, raised)
        return raised
