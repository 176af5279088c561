"""Network cards of the host, and their virtual functions, in guests."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import edu
import iommu_log
import vmlet
from conftest import command, descriptors, initramfs, kernels, lacks, limit, short
from guests.driven import IMAGE
from vf_queue import Sender, asked_for_mac
from vmlet import host, vfio

Make = Callable[..., vmlet.VM]

#: The cloud kernels lack the driver of virtual functions.
KERNEL = "linux-6.12"
#: How often a function comes and goes.
_ROUNDS = int(os.environ.get("VMLET_ROUNDS", "5"))
CARD, FIRST, SECOND = "10.77.0.1", "10.77.0.2", "10.77.0.3"
_UP = (
    "until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done; "
    "ip addr add {}/24 dev eth0; ip link set eth0 up; "
    "until [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do sleep 0.1; done"
)


@pytest.fixture
def card() -> Iterator[host.PciDevice]:
    """The lab's card, whose interface is up and has an address for one test."""
    found = edu.card()
    (folder,) = Path("/sys/bus/pci/devices", found.address, "net").iterdir()

    def ip(*words: str) -> None:
        subprocess.run(["busybox", "ip", *words], check=True, timeout=limit(10))

    ip("addr", "add", f"{CARD}/24", "dev", folder.name)
    ip("link", "set", folder.name, "up")
    yield found
    ip("link", "set", folder.name, "down")
    ip("addr", "flush", "dev", folder.name)


def pings(vm: vmlet.VM, address: str) -> bool:
    return "3 packets received" in command(vm, f"ping -c 3 -i 0.2 {address}", timeout=30)


class Debians:
    """Guests with Debian's kernel that wait for a card: booted once, for whoever needs them."""

    def __init__(self) -> None:
        self._running: dict[int, vmlet.VM] = {}

    def take(self, *numbers: int) -> list[vmlet.VM]:
        """Those, each with its shell; anew where one has ended, or still has a card of before."""
        kept = {
            number: vm
            for number, vm in self._running.items()
            if vm.state == "running" and not vm.devices
        }
        fresh = [number for number in numbers if number not in kept]
        for number in fresh:
            self._start(number)
        for number in fresh:
            self._running[number].console.expect("# ", timeout=limit(60))
        return [self._running[number] for number in numbers]

    def _start(self, number: int) -> None:
        self._close(number)
        vm = self._running[number] = vmlet.VM(
            kernel=kernels()[KERNEL],
            initramfs=initramfs(modules=("igbvf", "virtio_pci", "virtio_net"), kernel=KERNEL),
            cmdline=short(vmlet.default_cmdline("kvm")),
            engine="kvm",
            memory="192M",
            pci_ports=1,
        )
        vm.start()

    def _close(self, number: int) -> None:
        if vm := self._running.pop(number, None):
            vm.close(wait=True)

    def close(self) -> None:
        """Ends all."""
        for number in list(self._running):
            self._close(number)


@pytest.fixture(scope="module")
def debians() -> Iterator[Debians]:
    guests = Debians()
    yield guests
    guests.close()


@pytest.mark.kvm_linux
def test_two_guests_with_virtual_functions_reach_the_card_and_each_other(
    card: host.PciDevice, debians: Debians
) -> None:
    with card.vfs(2) as vfs:
        guests = debians.take(0, 1)
        for number, (vm, vf) in enumerate(zip(guests, vfs, strict=True), 2):
            vf.configure(mac=f"02:00:00:00:09:{number:02x}")
            vm.attach(vmlet.Vfio(vf))
        for vm, address in zip(guests, (FIRST, SECOND), strict=True):
            command(vm, _UP.format(address), timeout=30)
        first, second = guests
        assert "02:00:00:00:09:02" in command(first, "cat /sys/class/net/eth0/address")
        assert pings(first, CARD)
        assert pings(second, CARD)
        assert pings(first, SECOND)
        # Receive, transmit, mailbox.
        assert int(command(first, "grep -c eth0 /proc/interrupts")) > 1
        for vm in guests:
            vm.detach(1, pull=True)


@pytest.mark.kvm_linux
def test_a_virtual_function_comes_and_goes_while_debian_runs(
    card: host.PciDevice, debians: Debians
) -> None:
    with card.vfs(1) as (vf,):
        vf.configure(mac="02:00:00:00:09:02")
        (vm,) = debians.take(0)
        before = descriptors()
        for _ in range(_ROUNDS):
            vm.attach(vmlet.Vfio(vf))
            command(vm, _UP.format(FIRST), timeout=30)
            assert pings(vm, CARD)
            vm.detach(1, timeout=limit(30))
            assert vm.devices == {}
            command(vm, "while [ -e /sys/class/net/eth0 ]; do sleep 0.1; done", timeout=30)
        assert descriptors() == before


@pytest.mark.kvm
def test_a_virtual_function_does_not_reach_the_guest_that_has_another(
    card: host.PciDevice, make: Make
) -> None:
    theirs, pattern = 0x2000000, bytes(range(64))
    with (
        card.vfs(2) as (first, second),
        make(kernel=IMAGE, engine="kvm", memory="64M", devices=[vmlet.Vfio(first)]) as vm,
        vfio.open(second.address) as device,
    ):
        vm.start()
        vm.memory[theirs : theirs + 64] = pattern
        second.configure(mac="02:00:00:00:09:01")
        assert asked_for_mac(device) == "02:00:00:00:09:01"
        sender = Sender(device, iova=0x8000000)
        with iommu_log.faults() as faults:
            sender.send(theirs)
            assert ("Write", second.address.removeprefix("0000:"), theirs) in faults()
        assert vm.memory[theirs : theirs + 64] == pattern
        # It does write: to memory of its own at the same address, of which it has none before.
        ours = device.dma(4096, iova=theirs)
        ours.view()[:4] = b"\xee" * 4
        sender.send(theirs)
        assert int.from_bytes(ours.view()[:4], "little") <= sender.sent
        assert vm.memory[theirs : theirs + 64] == pattern


#: Addresses of the network that the emulator has behind the other card.
_GATEWAY, _LEASED = "10.0.2.2", "10.0.2.15"


@pytest.fixture
def caching() -> Iterator[str]:
    """A card with ATS on, given to VFIO for one test; its driver has it again afterwards."""
    found = next((one for one in host.pci_devices() if one.ats == "on"), None)
    if found is None or "VMLET_LAB" not in os.environ:
        lacks("ats", "no function of this host has ATS on that may be taken from its driver")
    vfio.bind(found.address)
    yield found.address
    vfio.release(found.address)
    after = host.pci_device(found.address)
    assert (after.driver, after.ats) == (found.driver, "on")


def forgotten(address: str) -> list[range]:
    """Addresses that the cache of a function was told to forget so far, as the lab's emulator saw:
    VT-d specification, section 6.5.2.5, with the source in the middle of the low word, and a
    range's size in the lowest bits of its address where it is more than a page."""
    _, bus, place = address.split(":")
    device, function = place.split(".")
    source = int(bus, 16) << 8 | int(device, 16) << 3 | int(function)
    # The kernel here does not see that somebody else writes to what it has read.
    Path("/proc/sys/vm/drop_caches").write_text("3")
    log = Path(os.environ["VMLET_OUT"], "emulator.log").read_text()
    found = []
    for high, low in re.findall(r"vtd_inv_desc .*type device high 0x(\w+) low 0x(\w+)", log):
        if int(low, 16) >> 32 & 0xFFFF == source:
            page, several = divmod(int(high, 16), 4096)
            pages = 2 * ((page + 1) & ~page) if several & 1 else 1
            begin = page & ~(pages - 1)
            found.append(range(begin * 4096, (begin + pages) * 4096))
    return found


def unmapped(address: str) -> tuple[int, list[range]]:
    """Where something was mapped, and what the function's cache was told when that ended."""
    with vfio.open(address) as device:
        buffer = device.dma(4096, iova=0x1234000)
        before = len(forgotten(address))
        buffer.unmap()
        return buffer.iova, forgotten(address)[before:]


def test_an_address_cache_is_told_of_what_is_unmapped(caching: str) -> None:
    iova, told = unmapped(caching)
    assert any(iova in addresses for addresses in told)


def test_a_function_without_an_address_cache_is_told_of_nothing(caching: str) -> None:
    with edu.bound() as address:
        assert host.pci_device(address).ats == "absent"
        assert unmapped(address)[1] == []
    # The log goes on meanwhile.
    assert unmapped(caching)[1] != []


@pytest.mark.kvm_linux
def test_a_card_with_an_address_cache_keeps_it_on_in_a_guest(
    caching: str, debians: Debians
) -> None:
    (vm,) = debians.take(0)
    vm.attach(vmlet.Vfio(caching))
    command(vm, _UP.format(_LEASED), timeout=30)
    assert pings(vm, _GATEWAY)
    assert int(command(vm, "grep -c MSIX.*virtio /proc/interrupts")) == 3
    assert host.pci_device(caching).ats == "on"
    (device,) = vm.devices.values()
    assert (device.ats, device.ats_unknown_because) == (True, None)
    vm.detach(1, pull=True)
