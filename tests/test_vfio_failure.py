"""A device of the host that reports an error, which the kernel makes up (its module aer_inject)."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import edu
import vmlet
from conftest import lacks, limit
from guests.driven import IMAGE
from vmlet import host

Make = Callable[..., vmlet.VM]

_INJECT = Path("/dev/aer_inject")
#: struct aer_error_inj of the kernel's drivers/pci/pcie/aer_inject.c: bus, device, function,
#: uncorrectable and correctable errors, four words of the request, segment.
_ERROR = struct.Struct("=BBBx7I")
#: A poisoned request came (PCI Express 6.0, section 7.8.4.2): not fatal, unless it is made so.
_POISONED = 1 << 12


@pytest.fixture
def card() -> Iterator[host.PciDevice]:
    """The lab's network card, which reports errors, given to VFIO for one test."""
    found = edu.card()
    if not _INJECT.exists():
        lacks("aer", "the kernel's module aer_inject is not here")
    found.bind()
    yield found
    assert found.release().driver == "igb"


def fail(device: str) -> None:
    """Has the kernel hear of an error of the device's."""
    segment, bus, rest = device.split(":")
    slot, function = rest.split(".")
    place = int(bus, 16), int(slot, 16), int(function)
    _INJECT.write_bytes(_ERROR.pack(*place, _POISONED, 0, 0, 0, 0, 0, int(segment, 16)))


def test_an_error_of_a_device_is_awaited(card: host.PciDevice) -> None:
    with card.open() as device:
        failure = device.failure
        assert failure is not None
        with pytest.raises(vmlet.TimeoutError):
            failure.wait(timeout=0)

        async def heard() -> int:
            fail(card.address)
            return await asyncio.wait_for(failure, limit(5))

        assert asyncio.run(heard()) == 1


def test_an_error_of_a_guests_device_is_an_event(card: host.PciDevice, make: Make) -> None:
    device = vmlet.Vfio(card)
    vm = make(kernel=IMAGE, memory="64M", pci_ports=1, devices=[device], engine="soft")
    vm.start()
    fail(card.address)
    heard = next(event for event in vm.events(timeout=limit(5)) if event.source == "host")
    assert (heard.kind, heard.detail) == ("device-failure", f"vfio {card.address}")
    vm.close(wait=True)
