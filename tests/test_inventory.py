"""The host's PCI functions, as `vmlet.host` and ``vmlet vfio list`` show them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import edu
import vmlet
from command_line import command
from conftest import lacks
from vmlet import host
from vmlet.cli import vfio as cli


def find(need: str, wanted: tuple[int, int]) -> host.PciDevice:
    all_of_them = (one for one in host.pci_devices() if (one.vendor, one.device) == wanted)
    found = next(all_of_them, None)
    if found is None:
        lacks(need, f"this host has no function {wanted[0]:04x}:{wanted[1]:04x}")
    return found


def a_function() -> host.PciDevice:
    """A card with all there is to show."""
    return host.PciDevice(
        address="0000:02:00.0",
        vendor=0x8086,
        device=0x10C9,
        class_code=0x020000,
        driver="igb",
        driver_override=None,
        group=host.IommuGroup(11, "DMA", (host.Member("0000:02:00.0", "igb"),), ()),
        iommu="dmar0",
        iommu_kind="VT-d",
        reset_methods=("flr", "pm"),
        ats="on",
        pri="off",
        pasid="absent",
        acs="absent",
        sriov="off",
        unknown_because=None,
        virtual_functions=host.VirtualFunctions(7, 2),
        physical_function=None,
        obstacles=(host.Obstacle("igb has it", "Bind it."),),
    )


def test_the_list_is_a_table_with_causes_and_remedies() -> None:
    head, row, cause, remedy = cli.render([a_function()])
    assert head.split()[:4] == ["address", "vendor:id", "driver", "group"]
    assert row.split() == [
        *("0000:02:00.0", "8086:10c9", "igb", "11", "VT-d", "flr,pm"),
        *("ats+", "pri-", "vfs", "2/7", "not", "ready"),
    ]
    assert (cause.strip(), remedy.strip()) == ("cause: igb has it", "remedy: Bind it.")


def test_every_function_of_sysfs_is_listed() -> None:
    there = sorted(path.name for path in Path("/sys/bus/pci/devices").iterdir())
    assert [found.address for found in host.pci_devices()] == there
    listed = json.loads(command("vfio", "list", "--all", "--json").stdout)
    assert [found["address"] for found in listed] == there


def test_a_function_that_is_not_there_is_an_error_on_the_command_line() -> None:
    done = command("vfio", "bind", "00ff:1f:1f.7", "--json")
    assert done.returncode == 2
    assert "vmlet vfio list" in done.stderr
    assert json.loads(done.stdout)["error"]["type"] == "ConfigError"


def test_another_driver_is_refused() -> None:
    with pytest.raises(vmlet.ConfigError, match="igb"):
        a_function().bind("igb")  # type: ignore[arg-type]


def test_doctor_speaks_of_vfio() -> None:
    topics = {finding.topic for finding in vmlet.doctor()}
    assert {"vfio driver", "vfio type1", "iommufd", "unsafe interrupts", "pci functions"} <= topics


def test_a_function_is_bound_and_released_by_the_command_line() -> None:
    found = find("edu", (edu.VENDOR, edu.DEVICE))
    before = found.driver, found.driver_override
    done = command("vfio", "bind", found.address)
    assert (done.returncode, done.stdout) == (0, f"{found.address}  vfio-pci\n"), done.stderr
    bound = host.pci_device(found.address)
    assert bound.obstacles == ()
    done = command("vfio", "release", found.address)
    assert (done.returncode, done.stdout) == (0, f"{found.address}  -\n"), done.stderr
    after = host.pci_device(found.address)
    assert (after.driver, after.driver_override) == before


def test_a_card_gets_its_own_driver_back() -> None:
    card = edu.card()
    assert card.driver == "igb"
    assert card.bind("vfio-pci").driver == "vfio-pci"
    with card.open() as device:
        assert device.resets
        device.reset()
        assert device.config.read(0, 2) == card.vendor
    assert card.release().driver == "igb"


def test_a_card_that_is_in_use_is_not_taken() -> None:
    card = edu.card()
    (interface,) = Path("/sys/bus/pci/devices", card.address, "net").iterdir()
    subprocess.run(["ip", "link", "set", interface.name, "up"], check=True)
    try:
        with pytest.raises(vmlet.StateError, match=f"{interface.name} is up") as refused:
            card.bind()
        assert f"ip link set {interface.name} down" in str(refused.value.remedy)
        assert host.pci_device(card.address).driver == "igb"
    finally:
        subprocess.run(["ip", "link", "set", interface.name, "down"], check=True)


def test_sriov_is_seen() -> None:
    card = edu.card()
    assert card.virtual_functions == host.VirtualFunctions(total=7, enabled=0)
    assert (card.sriov, card.ats) == ("off", "absent")
    assert "flr" in card.reset_methods


def test_an_address_cache_is_seen_and_is_on() -> None:
    caching = [found for found in host.pci_devices() if found.ats == "on"]
    if not caching:
        lacks("ats", "no function of this host has ATS on")
    assert {(found.pri, found.pasid, found.iommu_kind) for found in caching} == {
        ("absent", "absent", "VT-d")
    }


def test_groups_know_the_addresses_of_interrupts() -> None:
    group = find("edu", (edu.VENDOR, edu.DEVICE)).group
    assert group is not None
    assert [(one.kind, one.first) for one in group.reserved] == [("msi", 0xFEE00000)]


def test_ports_with_access_control_are_seen() -> None:
    find("edu", (edu.VENDOR, edu.DEVICE))
    ports = [found for found in host.pci_devices() if found.driver == "pcieport"]
    assert ports
    assert {found.acs for found in ports} == {"on"}
