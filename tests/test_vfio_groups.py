"""Functions of one IOMMU group, which the hardware cannot keep apart: driven together, given to one
guest, reset together."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import edu
import vmlet
from conftest import holdings, limit, locked
from edu_guest import Guest
from guests.driven import IMAGE
from vmlet import host, vfio

Make = Callable[..., vmlet.VM]
#: Two devices ``edu``, and between them a virtio device.
Three = tuple[str, str, str]

ENGINES = pytest.mark.parametrize("engine", [pytest.param("kvm", marks=pytest.mark.kvm), "soft"])
PATTERN = bytes(number * 5 + 1 & 0xFF for number in range(512))
SOURCE, TARGET = 0x400000, 0x500000
#: The status of a virtio device, which a reset clears: at this offset of its common structure, the
#: first in BAR 4 of the lab's (virtio 1.2, section 4.1.4.3). Bits: seen, driven.
_STATUS_BAR, STATUS, SEEN = 4, 0x14, 3


@pytest.fixture(scope="module")
def three() -> Iterator[Three]:
    """Addresses of the functions, given to VFIO for this module's tests."""
    found = edu.shared()
    before = [host.pci_device(address).driver for address in found]
    for address in found:
        vfio.bind(address)
    yield found
    for address in found:
        vfio.release(address)
    assert [host.pci_device(address).driver for address in found] == before


# Driven from Python


def test_two_are_driven_together_and_reach_the_same_memory(three: Three) -> None:
    before = holdings()
    with vfio.open(three[0]) as one, vfio.open(three[2], beside=one) as two:
        assert one.iommu == two.iommu
        given, taken = one.dma(4096), two.dma(4096)
        assert given.iova != taken.iova
        given.view()[: len(PATTERN)] = PATTERN
        first, second = edu.Edu(one), edu.Edu(two)
        second.fetch(given.iova, len(PATTERN))
        second.store(taken.iova, len(PATTERN))
        assert taken.view()[: len(PATTERN)] == PATTERN
        # What one has given goes with it; the other goes on, and it comes back beside that.
        one.close()
        assert (given.mapped, taken.mapped) == (False, True)
        second.store(taken.iova + 1024, len(PATTERN))
        assert taken.view()[1024 : 1024 + len(PATTERN)] == PATTERN
        with vfio.open(three[0], beside=two) as again:
            first = edu.Edu(again)
            first.fetch(taken.iova, len(PATTERN))
            first.store(taken.iova + 2048, len(PATTERN))
        assert taken.view()[2048 : 2048 + len(PATTERN)] == PATTERN
    assert holdings() == before


def test_who_does_not_open_it_beside_the_other_is_told_who_has_that(three: Three) -> None:
    with vfio.open(three[0]) as one:
        before = holdings()
        told = rf"vmlet\.vfio\.open in this process has open: {three[0]}"
        with pytest.raises(vmlet.StateError, match=told) as refused:
            vfio.open(three[2])
        assert "beside=" in str(refused.value.remedy)
        with pytest.raises(vmlet.StateError, match=told):
            vmlet.VM(kernel=IMAGE, memory="16M", engine="soft", devices=[vmlet.Vfio(three[2])])
        with pytest.raises(vmlet.StateError, match="is in use"):
            vfio.open(three[0], beside=one)
        assert holdings() == before
    with pytest.raises(vmlet.ClosedError):
        vfio.open(three[2], beside=one)
    vfio.open(three[2]).close()


def test_another_process_is_told_which_one_has_the_group(three: Three) -> None:
    script = (
        "import sys, vmlet\n"
        "try:\n    vmlet.vfio.open(sys.argv[1])\n"
        "except vmlet.StateError as error:\n    print(error.message)"
    )
    name = Path("/proc/self/comm").read_text().strip()
    with vfio.open(three[0]):
        done = subprocess.run(
            [sys.executable, "-c", script, three[2]],
            capture_output=True,
            text=True,
            check=True,
            timeout=limit(60),
        )
    assert f"{three[2]} is in use: process {os.getpid()} ({name}) has" in done.stdout


# In a guest


def both_ways(guest: Guest, port: int) -> bool:
    """Has the device in that root port copy from and to guest memory."""
    memory = guest.vm.memory
    memory[TARGET : TARGET + len(PATTERN)] = bytes(len(PATTERN))
    guest.turn_to(port)
    guest.find()
    guest.copy(SOURCE, edu.OWN, len(PATTERN))
    guest.copy(edu.OWN, TARGET, len(PATTERN), edu.TO_MEMORY)
    return bytes(memory[TARGET : TARGET + len(PATTERN)]) == PATTERN


@ENGINES
def test_a_guest_has_two_and_one_comes_and_goes(three: Three, make: Make, engine: str) -> None:
    before = holdings()
    one, two = vmlet.Vfio(three[0]), vmlet.Vfio(three[2])
    vm = make(kernel=IMAGE, engine=engine, memory="64M", pci_ports=2, devices=[one, two])
    assert vm.devices == {1: f"vfio {three[0]}", 2: f"vfio {three[2]}"}
    # Once for both.
    assert locked() == before[1] + (64 << 20)
    vm.start()
    vm.memory[SOURCE : SOURCE + len(PATTERN)] = PATTERN
    guest = Guest(vm)
    assert both_ways(guest, 1)
    assert both_ways(guest, 2)
    vm.detach(1, pull=True)
    assert both_ways(guest, 2)
    told = f"a VM of this process has open: {three[2]}"
    with pytest.raises(vmlet.StateError, match=told) as refused:
        make(kernel=IMAGE, engine="soft", memory="16M", devices=[one])
    assert "vm.attach" in str(refused.value.remedy)
    with pytest.raises(vmlet.StateError, match=told):
        vfio.open(three[0])
    with pytest.raises(vmlet.StateError, match="is in use"):
        vm.attach(two)
    assert vm.attach(one) == 1
    guest.turn_to(1)
    guest.place()
    assert both_ways(guest, 1)
    assert both_ways(guest, 2)
    vm.close(wait=True)
    assert holdings() == before
    vfio.open(three[2]).close()


# Reset together


def status(device: vfio.Device) -> int:
    return device.bars[_STATUS_BAR].read(STATUS, 1)


def see(device: vfio.Device) -> None:
    """Has the virtio device hold what a reset clears."""
    device.bars[_STATUS_BAR].write(STATUS, SEEN, 1)
    assert status(device) == SEEN


def test_one_without_a_reset_of_its_own_is_reset_with_those_beside_it(three: Three) -> None:
    with vfio.open(three[0]) as device, vfio.open(three[1], beside=device) as other:
        see(other)
        buffer, machine = device.dma(4096), edu.Edu(device)
        assert device.resets
        device.reset()
        assert status(other) == 0
        assert (device.config.read(0, 2), other.config.read(0, 2)) == (edu.VENDOR, 0x1AF4)
        # Registers and memory are reached as before.
        machine.store(buffer.iova, 16)
        see(other)
        other.reset()
        assert status(other) == 0


def test_a_function_that_the_host_has_keeps_others_from_being_reset(three: Three) -> None:
    path = Path("/sys/bus/pci/devices", three[1], "driver")
    (path / "unbind").write_text(three[1])
    try:
        with vfio.open(three[0]) as device:
            assert not device.resets
            told = rf"with it would be reset: {three[1]} \(no driver\)"
            with pytest.raises(vmlet.StateError, match=told) as refused:
                device.reset()
            assert f"vmlet vfio bind {three[1]}" in str(refused.value.remedy)
    finally:
        vfio.bind(three[1])


def test_a_guests_reset_spares_what_it_uses_and_takes_the_rest(
    three: Three, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    devices = [vmlet.Vfio(three[0]), vmlet.Vfio(three[1])]
    with caplog.at_level(logging.DEBUG):
        vm = make(kernel=IMAGE, engine="soft", memory="64M", pci_ports=2, devices=devices)
        vm.start()
        guest = Guest(vm)

        def reset() -> int:
            """The status of the virtio device after the guest has reset the other one."""
            guest.turn_to(1)
            guest.write(guest.capability(0x10) + 8, 1 << 15)
            return guest.read(bar + STATUS) & 0xFF

        guest.turn_to(2)
        # BAR 4, which has 64 bits.
        guest.write(guest.config + 0x24, 0)
        bar = guest.place(0x20)
        guest.write(guest.config + 4, 2)
        guest.write(bar + STATUS, SEEN)
        assert reset() == SEEN
        # When it came to the guest; the guest's own was put off.
        told = (f"{three[0]} is reset with its slot or bus", "is not reset while others are used")
        deadline = time.monotonic() + limit(5)
        while not any(told[1] in line for line in caplog.messages):
            assert time.monotonic() < deadline, caplog.messages
            time.sleep(0.01)
    assert [sum(text in line for line in caplog.messages) for text in told] == [1, 1]
