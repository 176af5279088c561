"""Virtual functions of a network card, each in a guest of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import edu
import vmlet
from conftest import command, initramfs, kernels, limit
from vmlet import host

Make = Callable[..., vmlet.VM]

#: The cloud kernels lack the driver of virtual functions.
KERNEL = "linux-6.12"
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


@pytest.mark.kvm_linux
def test_two_guests_with_virtual_functions_reach_the_card_and_each_other(
    card: host.PciDevice, make: Make
) -> None:
    with card.vfs(2) as vfs:
        guests = []
        for number, vf in enumerate(vfs, 2):
            vf.configure(mac=f"02:00:00:00:09:{number:02x}")
            vm = make(
                kernel=kernels()[KERNEL],
                initramfs=initramfs(modules=("igbvf",), kernel=KERNEL),
                engine="kvm",
                memory="192M",
                devices=[vmlet.Vfio(vf)],
            )
            vm.start()
            guests.append(vm)
        for vm, address in zip(guests, (FIRST, SECOND), strict=True):
            vm.console.expect("# ", timeout=limit(60))
            command(vm, _UP.format(address), timeout=30)
        first, second = guests
        assert "02:00:00:00:09:02" in command(first, "cat /sys/class/net/eth0/address")
        assert pings(first, CARD)
        assert pings(second, CARD)
        assert pings(first, SECOND)
        # Receive, transmit, mailbox.
        assert int(command(first, "grep -c eth0 /proc/interrupts")) > 1
        for vm in guests:
            vm.close(wait=True)
