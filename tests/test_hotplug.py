"""Devices that come and go while Debian runs, by native PCIe hot-plug."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import networks
import vmlet
import vmlet.aio
from conftest import Engine, initramfs, kernels, limit, short, until
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


def detach_across_pauses(vm: vmlet.VM, ports: list[int]) -> None:
    """The guest lets go of the devices in ``ports`` while it is paused again and again."""
    with ThreadPoolExecutor(len(ports)) as aside:
        detaching = [aside.submit(vm.detach, port, timeout=limit(40)) for port in ports]
        while not all(each.done() for each in detaching):
            vm.pause()
            vm.resume()
            time.sleep(0.1)
        for each in detaching:
            each.result()


#: A device's life: it comes and is used, and its port is given; what is gone is seen when it goes
#: on, and the device comes again.
Life = Generator[int]


def a_disk(vm: vmlet.VM, folder: Path) -> Life:
    image = blank(folder / "disk.img")
    for text in ("first", "second"):
        assert disks(vm, 0) == ""
        port = vm.attach(vmlet.Disk(image))
        found = disks(vm, 1, lambda: pauses(vm))
        assert (vm.devices[port], found) == ("virtio-blk", "vda")
        write = (
            f"yes {text} | dd of=/dev/vda bs=4k count=256 iflag=fullblock conv=fsync 2>/dev/null"
        )
        command(vm, write, meanwhile=lambda: pauses(vm))
        assert image.read_bytes().startswith((f"{text}\n" * (1 << 16)).encode()[: 1 << 18])
        yield port


def a_nic(vm: vmlet.VM, _: Path) -> Life:
    gone = "while [ -e /sys/class/net/eth0 ]; do sleep 0.1; done; ls /sys/class/net"
    ready = (
        "until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done; "
        "ip link set eth0 up; ip addr add 10.9.1.1/24 dev eth0"
    )
    for _again in range(2):
        assert command(vm, gone) == "lo"
        with networks.responder() as peer:
            port = vm.attach(vmlet.Net(peer=peer))
            command(vm, ready, meanwhile=lambda: pauses(vm))
            assert networks.pings(vm, "10.9.1.2")
            yield port


def one_in_python(vm: vmlet.VM, _: Path) -> Life:
    class Register(vmlet.PciDevice):
        vendor_id, device_id = 0x1B36, 0x0077
        capabilities = (vmlet.Capability(b"\x09\x04\x00\x5a", bytes(4)),)
        reads = 0

        def read_config(self, offset: int, size: int, value: int) -> int | None:
            self.reads += 1
            return None

    device = Register()
    function = "$(dirname $(grep -l 0x0077 /sys/bus/pci/devices/*/device))"
    found = "grep -q 0x0077 /sys/bus/pci/devices/*/device"
    there = f"for i in $(seq 100); do {found} && break; sleep 0.1; done"
    for _again in range(2):
        device.reads = 0
        port = vm.attach(device)
        assert command(vm, f"{there}; cat {function}/vendor") == "0x1b36"
        assert device.vm is vm
        assert device.reads > 0
        with pytest.raises(vmlet.ConfigError, match="is on a VM"):
            vm.attach(device)
        yield port


def a_balloon(vm: vmlet.VM, _: Path) -> Life:
    for size, device in (
        (16 << 20, vmlet.Balloon(target="16M", reporting=False)),
        (0, vmlet.Balloon()),
    ):
        with pytest.raises(vmlet.ConfigError, match="balloon") as missing:
            vm.balloon.target = 0
        assert "vmlet.Balloon" in str(missing.value.remedy)
        port = vm.attach(device)
        until(lambda: vm.balloon.has_driver)
        assert vm.balloon.target == size
        until(lambda: vm.balloon.size == vm.balloon.target)
        with pytest.raises(vmlet.ConfigError, match="second"):
            vm.attach(vmlet.Balloon())
        yield port


def a_console(vm: vmlet.VM, _: Path) -> Life:
    driven = "until ls -d /sys/bus/virtio/drivers/virtio_console/virtio*; do sleep 0.1; done"
    for text in ("first", "second"):
        with pytest.raises(vmlet.ConfigError, match="terminal") as missing:
            vm.terminal.write("x")
        assert "vmlet.VirtioConsole" in str(missing.value.remedy)
        port = vm.attach(vmlet.VirtioConsole())
        command(vm, f"{driven} 2>/dev/null; echo {text} > /dev/hvc0")
        assert vm.terminal.expect(text, timeout=limit(10))
        with pytest.raises(vmlet.ConfigError, match="second"):
            vm.attach(vmlet.VirtioConsole())
        yield port


@pytest.mark.engines
def test_devices_come_are_used_go_and_come_again_across_pauses(
    make: Make, tmp_path: Path, engine: Engine
) -> None:
    modules = dict.fromkeys(("virtio_blk", "virtio_balloon", *networks.MODULES))
    vm = booted(make, initramfs=initramfs(modules=tuple(modules), kernel=KERNEL), pci_ports=6)
    assert vm.devices == {}
    lives = [life(vm, tmp_path) for life in (a_disk, a_nic, one_in_python, a_balloon, a_console)]
    ports = [next(life) for life in lives]
    assert ports == [1, 2, 3, 4, 5]
    detach_across_pauses(vm, ports)
    assert vm.devices == {}
    again = [next(life) for life in lives]
    assert (again, list(vm.devices)) == (ports, ports)
    vm.close()
    # What they have on the host ends with the VM.
    assert [next(life, None) for life in lives] == [None] * len(lives)


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
