"""Devices that come and go while Debian runs, by native PCIe hot-plug."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import networks
import vmlet
import vmlet.aio
from conftest import Engine, initramfs, kernels, limit, short
from disks import blank, command, with_disks
from vmlet.plugged import PluggedDevice

pytestmark = pytest.mark.linux

KERNEL = "linux-6.12-cloud"
Make = Callable[..., vmlet.VM]
#: Lists the disks there are, once there are as many as it says.
DISKS = "for i in $(seq 100); do [ $(ls /sys/block | grep -c ^vd) = {} ] && break; sleep 0.1; done"


def booted(make: Make, **settings: object) -> vmlet.VM:
    cmdline = short(f"{vmlet.default_cmdline('soft')} quiet loglevel=1")
    settings = {"initramfs": with_disks(KERNEL), **settings}
    vm = make(kernel=kernels()[KERNEL], cmdline=cmdline, **settings)
    vm.start()
    vm.console.expect("# ", timeout=limit(60))
    return vm


def disks(vm: vmlet.VM, count: int, meanwhile: Callable[[], None] | None = None) -> str:
    line = f"{DISKS.format(count)}; ls /sys/block | grep ^vd | tr '\\n' ' '"
    return command(vm, line, meanwhile=meanwhile)


def pauses(vm: vmlet.VM) -> None:
    """Ten of them, half of them long enough for the host to answer meanwhile."""
    for number in range(10):
        vm.pause()
        time.sleep(0.02 * (number % 2))
        vm.resume()
        time.sleep(0.01)


def detach_across_pauses(vm: vmlet.VM, port: int) -> None:
    """The guest lets go of the device in ``port`` while it is paused again and again."""
    with ThreadPoolExecutor(1) as aside:
        detaching = aside.submit(vm.detach, port, timeout=limit(40))
        while not detaching.done():
            vm.pause()
            vm.resume()
            time.sleep(0.1)
        detaching.result()


@pytest.mark.engines
def test_a_disk_comes_is_used_goes_and_comes_again_across_pauses(
    make: Make, tmp_path: Path, engine: Engine
) -> None:
    vm = booted(make, pci_ports=2)
    image = blank(tmp_path / "disk.img")
    assert (vm.devices, disks(vm, 0)) == ({}, "")

    def come(text: str) -> None:
        port = vm.attach(vmlet.Disk(image))
        found = disks(vm, 1, lambda: pauses(vm))
        assert (port, vm.devices, found) == (1, {1: "virtio-blk"}, "vda")
        write = (
            f"yes {text} | dd of=/dev/vda bs=4k count=256 iflag=fullblock conv=fsync 2>/dev/null"
        )
        command(vm, write, meanwhile=lambda: pauses(vm))
        assert image.read_bytes().startswith((f"{text}\n" * (1 << 16)).encode()[: 1 << 18])

    come("first")
    detach_across_pauses(vm, 1)
    assert (vm.devices, disks(vm, 0)) == ({}, "")
    come("second")


@pytest.mark.engines
def test_a_nic_comes_is_used_goes_and_comes_again_across_pauses(make: Make, engine: Engine) -> None:
    files = initramfs(modules=networks.MODULES, kernel=KERNEL)
    vm = booted(make, initramfs=files, pci_ports=1)
    ready = (
        "until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done; "
        "ip link set eth0 up; ip addr add 10.9.1.1/24 dev eth0"
    )

    with networks.responder() as peer:
        port = vm.attach(vmlet.Net(peer=peer))
        command(vm, ready, meanwhile=lambda: pauses(vm))
        assert networks.pings(vm, "10.9.1.2")
        detach_across_pauses(vm, port)
        gone = "while [ -e /sys/class/net/eth0 ]; do sleep 0.1; done; ls /sys/class/net"
        assert (vm.devices, command(vm, gone)) == ({}, "lo")
    with networks.responder() as peer:
        assert vm.attach(vmlet.Net(peer=peer)) == port
        command(vm, ready)
        assert networks.pings(vm, "10.9.1.2")
        vm.close()


@pytest.mark.engines
def test_a_device_in_python_comes_is_read_goes_and_comes_again(make: Make, engine: Engine) -> None:
    class Register(vmlet.PciDevice):
        vendor_id, device_id = 0x1B36, 0x0077
        capabilities = (vmlet.Capability(b"\x09\x04\x00\x5a", bytes(4)),)
        reads = 0

        def read_config(self, offset: int, size: int, value: int) -> int | None:
            self.reads += 1
            return None

    vm, device = booted(make, pci_ports=1), Register()
    function = "$(dirname $(grep -l 0x0077 /sys/bus/pci/devices/*/device))"
    found = "grep -q 0x0077 /sys/bus/pci/devices/*/device"
    there = f"for i in $(seq 100); do {found} && break; sleep 0.1; done"

    def come() -> int:
        device.reads = 0
        port = vm.attach(device)
        assert command(vm, f"{there}; cat {function}/vendor") == "0x1b36"
        assert device.vm is vm
        assert device.reads > 0
        with pytest.raises(vmlet.ConfigError, match="is on a VM"):
            vm.attach(device)
        return port

    vm.detach(come(), timeout=limit(40))
    assert vm.devices == {}
    come()


def test_a_disk_that_is_pulled_is_gone_and_the_guest_goes_on(make: Make, tmp_path: Path) -> None:
    vm = booted(make, devices=[vmlet.Disk(blank(tmp_path / "disk.img"))])
    assert disks(vm, 1) == "vda"
    vm.detach(1, pull=True)
    assert (vm.devices, disks(vm, 0)) == ({}, "")


def test_ports_that_are_full_or_not_there_are_named(make: Make, tmp_path: Path) -> None:
    vm = make(kernel=kernels()[KERNEL], devices=[vmlet.Rng()])
    with pytest.raises(vmlet.Error, match="port"):
        vm.attach(vmlet.Rng())
    with pytest.raises(vmlet.Error):
        vm.attach(vmlet.Rng(), port=1)
    with pytest.raises(vmlet.Error):
        vm.detach(7)
    with pytest.raises(vmlet.ConfigError, match="cannot come later"):
        vm.attach(vmlet.PioDevice(at=0x700, size=4))
    vm.detach(1)
    assert vm.attach(vmlet.Rng()) == 1


def test_a_guest_that_does_not_let_go_is_a_timeout_with_a_remedy(make: Make) -> None:
    cmdline = f"{vmlet.default_cmdline('soft')} pcie_ports=compat"
    vm = make(kernel=kernels()[KERNEL], cmdline=cmdline, devices=[vmlet.Rng()])
    vm.start()
    vm.console.expect("Linux version", timeout=limit(30))
    with pytest.raises(vmlet.TimeoutError, match="port 1") as failed:
        vm.detach(1, timeout=0.2)
    assert "pull" in str(failed.value.remedy)
    assert vm.devices == {1: "virtio-rng"}


def test_the_asyncio_twin_attaches_and_detaches(tmp_path: Path) -> None:
    async def come_and_go() -> list[dict[int, PluggedDevice]]:
        seen = []
        async with vmlet.aio.VM(kernel=kernels()[KERNEL], pci_ports=1, engine="soft") as vm:
            port = await vm.attach(vmlet.Disk(blank(tmp_path / "disk.img")))
            seen.append(vm.devices)
            await vm.detach(port)
            seen.append(vm.devices)
        return seen

    assert asyncio.run(come_and_go()) == [{1: "virtio-blk"}, {}]
