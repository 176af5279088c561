"""PCI functions and virtio devices written in Python, under Linux's own drivers."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vmlet
from conftest import initramfs, kernels, limit, short
from guests import guest

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from pci_device import Capitals

KERNEL = "linux-6.12-cloud"
MODULES = ("uio_pci_generic", "virtio_rng")
RESERVED = "memmap=64K$0x7000000"
#: "hello" at 0x7000000 goes to 0x7000100 in capitals, with an interrupt through /dev/uio0.
USES_UIO = r"""
echo 1234 ca95 > /sys/bus/pci/drivers/uio_pci_generic/new_id
dev=$(echo /sys/bus/pci/drivers/uio_pci_generic/0000:*)
printf '\006' | dd of=$dev/config bs=1 seek=4 conv=notrunc 2> /dev/null
bar=$(head -n1 $dev/resource | cut -d' ' -f1)
reg() { devmem $((bar + $1)) 32 $2; }
devmem 0x7000000 32 0x6c6c6568
devmem 0x7000004 32 0x0000006f
reg 0 0x7000000; reg 4 0x7000100; reg 8 5
dd if=/dev/uio0 of=/irq bs=4 count=1 2> /dev/null &
reg 12 1
wait
echo "=irq $(hexdump -v -e '1/4 "%d"' /irq) status $(reg 16)"
reg 16 1
echo "=text $(devmem 0x7000100 32) $(devmem 0x7000104 32) status $(reg 16)"
"""
USES_RNG = r"""
echo "=rng $(cat /sys/class/misc/hw_random/rng_current)"
dd if=/dev/hwrng bs=16 count=4 2> /dev/null | hexdump -v -e '"=bytes " 64/1 "%02x" "\n"'
echo "=msix $(grep -c 'MSIX.*virtio' /proc/interrupts)"
"""

Make = Callable[..., vmlet.VM]


class Dice(vmlet.VirtioDevice):
    """An entropy device with the randomness of one throw."""

    device_type = 4
    queues = (64,)

    def __init__(self) -> None:
        self.chains = 0

    def notified(self, queue: vmlet.Queue) -> None:
        for chain in queue:
            assert chain.readable == 0
            assert chain.write(b"4" * (chain.writable + 1)) == chain.writable
            self.chains += 1


def linux(
    make: Make, engine: str, script: str, *devices: vmlet.Device, **settings: Any
) -> vmlet.VM:
    """A VM that runs ``script`` and then a shell."""
    cmdline = short(vmlet.default_cmdline(engine)) + " " + RESERVED
    return make(
        engine=engine,
        kernel=kernels()[KERNEL],
        initramfs=initramfs(script, MODULES, KERNEL),
        cmdline=cmdline,
        devices=devices,
        **settings,
    )


def found(vm: vmlet.VM, pattern: str) -> bytes:
    return vm.console.expect(re.compile(pattern.encode()), timeout=limit(240))[0]


@pytest.mark.linux
@pytest.mark.engines
def test_a_pci_device_works_under_uio_by_registers_interrupt_and_dma(
    make: Make, engine: str
) -> None:
    device = Capitals()
    vm = linux(make, engine, USES_UIO, device)
    vm.start()
    found(vm, "=irq 1 status 0x00000001")
    # "HELL", "O"
    found(vm, "=text 0x4C4C4548 0x0000004F status 0x00000000")
    vm.pause()
    assert device.dma.read(0x7000100, 5) == b"HELLO"
    vm.resume()
    vm.console.write("echo still $((6 * 7))\n")
    found(vm, "still 42")


@pytest.mark.linux
@pytest.mark.engines
def test_a_virtio_device_works_with_msix_under_its_stock_driver(make: Make, engine: str) -> None:
    dice = Dice()
    vm = linux(make, engine, USES_RNG, dice)
    vm.start()
    found(vm, "=rng virtio_rng.0")
    found(vm, "=bytes " + "34" * 64)
    assert int(found(vm, r"=msix \d").split()[1]) == 2
    vm.pause()
    before = dice.chains
    vm.resume()
    vm.console.write("dd if=/dev/hwrng bs=16 count=40 2> /dev/null | wc -c\n")
    found(vm, "640")
    assert dice.chains > before > 0


@pytest.mark.linux
@pytest.mark.interpreted
def test_chains_can_be_given_back_later_from_another_thread(make: Make) -> None:
    class Late(Dice):
        def notified(self, queue: vmlet.Queue) -> None:
            for chain in queue:
                chain.write(b"4" * chain.writable)
                chain.keep()
                threading.Timer(0.01, chain.done).start()

    vm = linux(make, "soft", USES_RNG, Late())
    vm.start()
    found(vm, "=bytes " + "34" * 64)


@pytest.mark.linux
@pytest.mark.interpreted
def test_a_counted_boot_with_devices_of_python_is_the_same_each_time(make: Make) -> None:
    def run() -> tuple[int, str]:
        script = USES_UIO + USES_RNG + "poweroff -f\n"
        vm = linux(make, "soft", script, Capitals(), Dice(), clock="icount")
        assert vm.run(timeout=limit(240)).kind == "poweroff"
        text = vm.console.read()
        assert b"=text 0x4C4C4548 0x0000004F" in text
        assert b"=bytes 3434" in text
        return vm.instructions, vm.state_hash()

    assert run() == run()


@pytest.mark.linux
@pytest.mark.interpreted
def test_what_a_virtio_device_raises_is_raised(make: Make) -> None:
    class Raises(Dice):
        def notified(self, queue: vmlet.Queue) -> None:
            for chain in queue:
                chain.write(b"x")
                self.vm.pause()

    vm = linux(make, "soft", USES_RNG, Raises())
    with pytest.raises(vmlet.DeviceError, match=r"Raises\.notified failed") as caught:
        vm.run(timeout=limit(240))
    assert isinstance(caught.value.__cause__, vmlet.ReentryError)


QUIET = guest("spin")


def test_a_vm_has_root_ports_for_its_devices() -> None:
    device, dice = Capitals(), Dice()
    with vmlet.VM(kernel=QUIET, engine="soft", devices=[device, dice]) as vm:
        assert vm._machine.state == "created"
        assert device.vm is vm
        assert device.msix == ()
        device.dma.write(0x7000000, b"abc")
        assert vm.memory[0x7000000:0x7000003] == b"abc"
        for bad in (1 << 40, (1 << 64) - 1):
            with pytest.raises(vmlet.GuestError, match="is refused"):
                device.dma.read(bad, 4)
        with pytest.raises(vmlet.GuestError):
            device.dma.read(0x7000000, 1 << 40)
        assert dice.queue(0) is None
    with pytest.raises(vmlet.ClosedError):
        device.dma.read(0, 1)


def test_a_saved_vm_takes_its_devices_along() -> None:
    class Kept(Capitals):
        def save(self) -> bytes:
            return bytes([self.registers[0]])

        def restore(self, state: bytes) -> None:
            self.registers[0] = state[0]

    kept, other = Kept(), Kept()
    with vmlet.VM(kernel=QUIET, engine="soft", devices=[kept, Dice()]) as vm:
        kept.registers[0] = 77
        vm.start()
        vm.pause()
        saved = vm._save()
    with vmlet.VM._restore(saved, engine="soft", devices=[other, Dice()]) as again:
        assert other.registers[0] == 77
        again.start()


def pci(**attributes: Any) -> vmlet.PciDevice:
    kind = type("Odd", (Capitals,), attributes)
    made = kind()
    assert isinstance(made, vmlet.PciDevice)
    return made


def virtio(**attributes: Any) -> vmlet.VirtioDevice:
    made = type("Odd", (Dice,), attributes)()
    assert isinstance(made, vmlet.VirtioDevice)
    return made


@pytest.mark.parametrize(
    "device",
    [
        pci(bars={0: vmlet.Bar(100)}),
        pci(bars={6: vmlet.Bar(4096)}),
        pci(bars={0: vmlet.Bar(4096, bits=64), 1: vmlet.Bar(4096)}),
        pci(bars={0: vmlet.Bar(4096, bits=16)}),
        pci(bars={at: vmlet.Bar(4096) for at in range(6)}, vectors=1),
        pci(vectors=4096),
        pci(class_code=1 << 24),
        pci(capabilities=[vmlet.Capability(b"\x09" + bytes(200))]),
        pci(capabilities=[vmlet.Capability(b"")]),
        virtio(queues=()),
        virtio(queues=(3,)),
        virtio(device_type=0),
        virtio(features=-1),
    ],
)
def test_devices_that_cannot_be_are_refused(device: vmlet.Device) -> None:
    with pytest.raises(vmlet.ConfigError):
        vmlet.VM(kernel=QUIET, engine="soft", devices=[device])
