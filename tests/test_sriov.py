"""Virtual functions of a network card: made, configured, driven, removed, mended."""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import edu
import vmlet
from command_line import command
from conftest import lacks
from killed import killed
from vf_queue import asked_for_mac
from vmlet import host, vfio

#: The virtual function of that card.
VF = (0x8086, 0x10CA)
NOTES = Path("/run/vmlet")


def state(address: str) -> tuple[object, ...]:
    """All that has to be as before: the card, its switches, its interface, and what is noted."""
    folder = Path("/sys/bus/pci/devices", address)
    found = host.pci_device(address)
    noted = [path for path in NOTES.rglob("*") if path.is_file() and path.suffix != ".lock"]
    every = [one.address for one in host.pci_devices()]
    return (
        *(found.driver, found.driver_override, found.virtual_functions),
        (folder / "sriov_drivers_autoprobe").read_text(),
        *(sorted(path.name for path in (folder / "net").iterdir()), sorted(noted), every),
    )


@pytest.fixture
def card() -> Iterator[host.PciDevice]:
    """The lab's card, which is after the test as it was before."""
    found = edu.card()
    before = state(found.address)
    assert found.virtual_functions == host.VirtualFunctions(total=7, enabled=0)
    yield found
    after = state(found.address)
    found.remove_vfs()
    assert after == before


@pytest.fixture
def interface(card: host.PciDevice) -> Iterator[str]:
    """The card's interface, up for one test: its driver answers virtual functions then only."""
    (folder,) = Path("/sys/bus/pci/devices", card.address, "net").iterdir()
    switch_up(folder.name, up=True)
    yield folder.name
    switch_up(folder.name, up=False)


def switch_up(interface: str, *, up: bool) -> None:
    """SIOCGIFFLAGS, SIOCSIFFLAGS and IFF_UP of netdevice(7)."""
    request = struct.Struct("16sh14x")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        told = fcntl.ioctl(link, 0x8913, request.pack(interface.encode(), 0))
        name, flags = request.unpack(told)
        fcntl.ioctl(link, 0x8914, request.pack(name, flags & ~1 | up))


def left_by_a_killed_process(address: str) -> None:
    """Virtual functions of a block whose process was killed inside of it."""
    with edu.killed_with_functions(address, 2) as number:
        with pytest.raises(vmlet.StateError, match=f"belong to process {number}"):
            host.pci_device(address).remove_vfs()
        assert vfio.mend() == []
    assert host.pci_device(address).virtual_functions == host.VirtualFunctions(7, 2)


def test_virtual_functions_last_as_long_as_their_block(card: host.PciDevice) -> None:
    with card.vfs(2) as vfs:
        assert {(one.vendor, one.device, one.driver) for one in vfs} == {(*VF, "vfio-pci")}
        assert {one.physical_function for one in vfs} == {card.address}
        assert all(one.obstacles == () for one in vfs)
        assert {(one.unknown_because, one.ats) for one in vfs} == {(None, "absent")}
        groups = {one.group.number for one in vfs if one.group}
        assert len(groups) == 2
        now = host.pci_device(card.address)
        assert (now.driver, now.sriov) == ("igb", "on")
    assert host.pci_device(card.address).sriov == "off"


def test_they_go_after_an_exception_too(card: host.PciDevice) -> None:
    with pytest.raises(ZeroDivisionError), card.vfs(1):
        raise ZeroDivisionError


def test_they_can_be_left_without_a_driver(card: host.PciDevice) -> None:
    vfs = card.create_vfs(3, driver=None)
    assert [one.driver for one in vfs] == [None] * 3
    assert card.remove_vfs().virtual_functions == host.VirtualFunctions(7, 0)


def test_mac_and_vlan_are_set_and_read_back(card: host.PciDevice) -> None:
    with card.vfs(2) as (first, second):
        told = second.configure(mac="02:00:00:00:12:34", vlan=100)
        assert (told.number, told.mac, told.vlan) == (1, "02:00:00:00:12:34", 100)
        assert second.network == told
        assert (first.network.number, first.network.vlan) == (0, 0)
        assert first.network.mac != told.mac
        assert second.configure(vlan=0).vlan == 0
        assert second.network.mac == told.mac
        with pytest.raises(vmlet.ConfigError, match="01:00"):
            second.configure(mac="01:00:00:00:00:00")
        with pytest.raises(vmlet.ConfigError, match="4095"):
            second.configure(vlan=4095)
        with pytest.raises(vmlet.ConfigError, match="no virtual function"):
            card.configure(vlan=1)


@pytest.mark.usefixtures("interface")
def test_a_virtual_function_is_driven(card: host.PciDevice) -> None:
    with card.vfs(1) as (vf,):
        mac = vf.configure(mac="02:00:00:00:00:77").mac
        with vf.open() as device:
            # VFIO shows the true ids, which config space of a virtual function lacks (9.3.4.1).
            assert device.config.read(0) == VF[1] << 16 | VF[0]
            assert device.interrupts["MSI-X"] == 3
            assert (device.resets, len(device.bars)) == (True, 2)
            assert asked_for_mac(device) == mac
            assert len(device.enable("MSI-X", 3)) == 3
            device.reset()
        assert vf.network.mac == mac


def test_an_open_one_is_not_taken_away(card: host.PciDevice) -> None:
    (vf,) = card.create_vfs(1)
    with vf.open(), pytest.raises(vmlet.StateError, match="is in use"):
        card.remove_vfs()
    card.remove_vfs()


def test_an_error_in_a_block_is_not_lost_where_one_is_still_open(card: host.PciDevice) -> None:
    opened = []

    def ended_by_its_own() -> None:
        with card.vfs(1) as (vf,):
            opened.append(vf.open())
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine") as caught:
        ended_by_its_own()
    (note,) = caught.value.__notes__
    assert "is in use" in note
    opened[0].close()
    card.remove_vfs()


def test_what_cannot_be_is_refused(card: host.PciDevice) -> None:
    for count in (0, 8):
        with pytest.raises(vmlet.ConfigError, match=f"up to 7 virtual functions, not {count}"):
            card.create_vfs(count)
    with card.vfs(1) as (vf,):
        with pytest.raises(vmlet.StateError, match="has 1 virtual functions already"):
            card.create_vfs(1)
        with pytest.raises(vmlet.UnsupportedError, match="no SR-IOV"):
            vf.create_vfs(1)


def test_a_card_without_its_driver_makes_none(card: host.PciDevice) -> None:
    card.bind()
    try:
        with pytest.raises(vmlet.UnsupportedError, match="vfio-pci does not") as caught:
            card.create_vfs(1)
        assert f"vmlet vfio release {card.address}" in (caught.value.remedy or "")
    finally:
        card.release()


def test_those_made_by_hand_are_left_alone(card: host.PciDevice) -> None:
    switch = Path("/sys/bus/pci/devices", card.address, "sriov_numvfs")
    switch.write_text("1")
    try:
        for act in (card.remove_vfs, lambda: card.create_vfs(1)):
            with pytest.raises(vmlet.StateError, match="not made by vmlet"):
                act()
    finally:
        switch.write_text("0")


def test_mend_removes_what_a_killed_process_left(card: host.PciDevice) -> None:
    left_by_a_killed_process(card.address)
    done = command("vfio", "mend", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, [card.address]), done.stderr
    assert command("vfio", "mend").stdout == ""


def killed_while_making(address: str, after: float) -> list[str]:
    """What is mended after a process that was killed so many seconds after it began."""
    with killed(lambda: host.pci_device(address).create_vfs(2)):
        time.sleep(after)
    mended = vfio.mend()
    left = host.pci_device(address).virtual_functions
    assert left is not None
    # Killed before it began, or once it was done, it leaves nothing to be mended.
    assert (mended, left.enabled) in (([address], 0), ([], 0), ([], 2))
    return mended


def test_a_process_killed_while_it_makes_them_leaves_what_is_mended(card: host.PciDevice) -> None:
    before = state(card.address)
    mended = 0
    for after in (0.02, 0.1, 0.2, 0.4):
        mended += len(killed_while_making(card.address, after))
        card.remove_vfs()
        assert state(card.address) == before
    print(f"{mended} of 4 were killed half way")
    assert mended > 0


def test_the_next_use_removes_it_too(card: host.PciDevice) -> None:
    left_by_a_killed_process(card.address)
    with card.vfs(3) as vfs:
        assert len(vfs) == 3


def test_a_user_may_not(card: host.PciDevice) -> None:
    script = (
        "import os; from vmlet import errors, host\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try:\n"
        f"    host.pci_device({card.address!r}).create_vfs(1)\n"
        "except errors.HostError as error:\n"
        "    print(error.errno, error.remedy)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "13 Do it as root.\n"


def test_the_command_line_makes_lists_and_removes(card: host.PciDevice) -> None:
    address, mac = card.address, "02:00:00:00:00:01"
    done = command("sriov", "create", address, "2", "--mac", mac, "--vlan", "7")
    assert done.returncode == 0, done.stderr
    head, first, second = done.stdout.splitlines()
    assert head == f"{address}  igb  vfs 2/7"
    assert (first.split()[1], second.split()[1]) == ("vfio-pci", "vfio-pci")
    assert host.pci_device(first.split()[0]).network.mac == mac
    assert host.pci_device(second.split()[0]).network.vlan == 7
    (listed,) = json.loads(command("sriov", "list", "--json").stdout)
    assert [one["address"] for one in listed["vfs"]] == [first.split()[0], second.split()[0]]
    done = command("sriov", "remove", address)
    assert (done.returncode, done.stdout) == (0, f"{address}  igb  vfs 0/7\n"), done.stderr


def test_a_function_without_sriov_is_an_error_anywhere() -> None:
    without = [one for one in host.pci_devices() if one.virtual_functions is None]
    if not without:
        lacks("pci", "this host has no function without SR-IOV")
    done = command("sriov", "create", without[0].address, "1", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["type"] == "UnsupportedError"
