"""What `vmlet.vfio` refuses, with which words; on any host, and of a device that is there."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import edu
import vmlet
from conftest import descriptors, lacks
from guests.driven import IMAGE
from ordinary_user import as_user
from vmlet import host, vfio


@pytest.fixture
def bound() -> Iterator[str]:
    """The address of the device, given to VFIO for one test."""
    with edu.bound() as address:
        yield address


# An ordinary user


def as_a_user(address: str, limit_of_locked: int) -> list[str]:
    """What a user without rights is told who opens the device and maps 64 KiB, then 1 MiB."""

    def work() -> None:
        try:
            with vfio.open(address) as device:
                device.dma(1 << 16)
                print(hex(device.config.read(0, 2)))
                device.dma(1 << 20)
        except vmlet.HostError as error:
            print(error.errno, error.message, error.remedy, sep="|")

    return as_user(work, limit_of_locked).splitlines()


def test_a_user_without_rights_is_told_which(bound: str) -> None:
    group = host.pci_device(bound).group
    assert group is not None
    (told,) = as_a_user(bound, 1 << 20)
    errno, message, remedy = told.split("|")
    assert int(errno) == 13
    assert message == f"this user may not use /dev/vfio/{group.number}"
    assert f"chown USER /dev/vfio/{group.number}" in remedy


def test_a_user_who_was_given_the_group_maps_what_may_be_locked(bound: str) -> None:
    group = host.pci_device(bound).group
    assert group is not None
    os.chown(f"/dev/vfio/{group.number}", 65534, 65534)
    assert as_a_user(bound, 4 << 20) == [hex(edu.VENDOR)]
    vendor, told = as_a_user(bound, 1 << 20)
    assert vendor == hex(edu.VENDOR)
    errno, message, remedy = told.split("|")
    assert int(errno) == 12
    # Asked for, locked, allowed.
    assert re.findall(r"\d+", message) == [str(1 << 20), str(1 << 16), str(1 << 20)]
    assert f"{1024 + 64} KiB" in remedy


# Refusals

#: Whether VFIO takes devices whose interrupts are not remapped.
_UNSAFE = Path("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts")


def test_interrupts_that_are_not_remapped_have_to_be_allowed_in_so_many_words(bound: str) -> None:
    if host.pci_device(bound).iommu_kind != "virtio-iommu":
        lacks("unremapped", "this host remaps interrupts")
    before = descriptors()
    vfio.open(bound).close()
    _UNSAFE.write_text("N")
    try:
        with pytest.raises(vmlet.UnsupportedError, match="cannot be confined") as refused:
            vfio.open(bound)
        with pytest.raises(vmlet.UnsupportedError, match="cannot be confined"):
            vmlet.VM(kernel=IMAGE, memory="16M", engine="soft", devices=[vmlet.Vfio(bound)])
    finally:
        _UNSAFE.write_text("Y")
    assert f"echo 1 > {_UNSAFE}" in str(refused.value.remedy)
    assert descriptors() == before


def test_a_device_that_is_not_bound_is_refused_with_the_remedy() -> None:
    found = edu.find()
    with pytest.raises(vmlet.StateError, match="no driver has it") as refused:
        vfio.open(found.address)
    assert refused.value.remedy is not None
    assert f"vmlet vfio bind {found.address}" in refused.value.remedy


def test_others_of_its_group_are_named_and_can_be_handed_on_too() -> None:
    first, other, _ = edu.shared()
    driver = host.pci_device(other).driver
    group = host.pci_device(first).group
    assert group is not None
    vfio.bind(first)
    with pytest.raises(vmlet.StateError) as refused:
        vfio.open(first)
    assert f"group {group.number}: {other} ({driver})" in refused.value.message
    assert f"vmlet vfio bind {other}" in str(refused.value.remedy)
    vfio.bind(other)
    with vfio.open(first) as device:
        assert edu.Edu(device).registers.read(edu.ID) & 0xFF == 0xED
    vfio.release(first)
    vfio.release(other)
    assert host.pci_device(other).driver == driver


@pytest.mark.parametrize("call", [vfio.open, vfio.bind, vfio.release])
def test_a_device_that_is_not_there_is_refused(call: Callable[[str], object]) -> None:
    with pytest.raises(
        vmlet.ConfigError, match=r"there is no PCI function 00ff:1f:1f\.7"
    ) as refused:
        call("00ff:1f:1f.7")
    assert "vmlet vfio list" in str(refused.value.remedy)
    with pytest.raises(vmlet.ConfigError, match="no address"):
        call("../../etc")


def test_every_function_says_what_keeps_it_from_being_opened() -> None:
    for found in host.pci_devices():
        for obstacle in found.obstacles:
            assert obstacle.cause
            assert obstacle.remedy
        if found.obstacles:
            with pytest.raises(vmlet.Error) as refused:
                vfio.open(found.address)
            assert found.obstacles[0].cause in refused.value.message
