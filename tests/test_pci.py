"""PCI as an unmodified Debian kernel finds it, without parameters for that."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import vmlet
from conftest import Engine, command, initramfs, kernels, limit

Make = Callable[..., vmlet.VM]

pytestmark = pytest.mark.linux

KERNELS = ("linux-6.1-cloud", "linux-6.12-cloud")


def boot(make: Make, kernel: str = KERNELS[0], **settings: object) -> vmlet.VM:
    vm = make(kernel=kernels()[kernel], initramfs=initramfs(), **settings)
    vm.start()
    vm.console.expect("# ", timeout=limit(60))
    return vm


@pytest.mark.engines
@pytest.mark.parametrize("kernel", KERNELS)
def test_debian_finds_the_root_ports_and_their_slots(make: Make, engine: str, kernel: str) -> None:
    vm = boot(make, kernel, engine=engine, pci_ports=3)
    found = command(vm, "cd /sys/bus/pci/devices; for d in *; do echo $d $(cat $d/class); done")
    assert found.splitlines() == [
        "0000:00:00.0 0x060000",
        "0000:00:01.0 0x060400",
        "0000:00:02.0 0x060400",
        "0000:00:03.0 0x060400",
    ]
    assert command(vm, "ls /sys/bus/pci/slots").split() == ["1", "2", "3"]
    assert command(vm, "cat /sys/bus/pci/slots/*/adapter").split() == ["0", "0", "0"]
    assert command(vm, "grep -c pciehp /proc/interrupts") == "3"
    # Nothing is wrong with what firmware has said and given.
    complaints = "dmesg | grep -i -E 'ACPI (error|bios|warning)|can.t claim|no space|failed to as'"
    assert command(vm, complaints) == ""


@pytest.mark.interpreted
def test_the_largest_bus_is_found_beside_memory_above_4_gib(make: Make) -> None:
    vm = boot(make, engine="soft", pci_ports=30, memory="6G")
    assert command(vm, "ls /sys/bus/pci/slots | wc -l") == "30"
    windows = command(vm, "grep 'PCI Bus 0000:00' /proc/iomem").splitlines()
    assert [line.strip() for line in windows] == [
        "c0000000-dfffffff : PCI Bus 0000:00",
        "1c0000000-11bfffffff : PCI Bus 0000:00",
    ]


def test_a_vm_without_root_ports_has_no_pci(make: Make) -> None:
    vm = boot(make)
    assert command(vm, "ls /sys/bus/pci/devices 2>/dev/null | wc -l") == "0"


@pytest.mark.parametrize("ports", [-1, 31, "2", None])
def test_a_number_of_root_ports_that_cannot_be_is_refused(ports: object) -> None:
    with pytest.raises(vmlet.ConfigError, match="pci_ports"):
        vmlet.VM(kernel=b"", pci_ports=ports)  # type: ignore[arg-type]


@pytest.mark.engines
def test_a_saved_bus_goes_on(make: Make, engine: Engine) -> None:
    vm = boot(make, engine=engine, pci_ports=2)
    before = command(vm, "od -An -tx1 /sys/bus/pci/devices/0000:00:0*.0/config | md5sum")
    vm.pause()
    saved = vm._save()
    vm.close()
    with vmlet.VM._restore(saved, engine=engine) as other:
        other.start()
        assert (
            command(other, "od -An -tx1 /sys/bus/pci/devices/0000:00:0*.0/config | md5sum")
            == before
        )
        other.console.write("poweroff -f\n")
        assert other.wait(timeout=limit(20)).kind == "poweroff"
