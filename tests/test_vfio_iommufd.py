"""The kernel's two interfaces to an IOMMU: which one is taken, and what each refuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

import edu
import vmlet
from conftest import descriptors, lacks, limit, locked
from guests.driven import IMAGE
from ordinary_user import NOBODY, handed_over
from vmlet import host, vfio

Make = Callable[..., vmlet.VM]
Iommu = Literal["iommufd", "type1"]

IOMMUFD = Path("/dev/iommu")
PATTERN = bytes(number * 7 + 3 & 0xFF for number in range(2048))
BOTH = pytest.mark.parametrize("iommu", ["iommufd", "type1"])


@pytest.fixture
def bound() -> Iterator[str]:
    """The address of the device, given to VFIO for one test, where it has a file of its own."""
    with edu.bound() as address:
        if not IOMMUFD.exists() or not file_of(address).exists():
            lacks("iommufd", "this kernel has no iommufd, or no files of devices")
        yield address


def file_of(address: str) -> Path:
    """The device's own file."""
    (entry,) = Path("/sys/bus/pci/devices", address, "vfio-dev").iterdir()
    return Path("/dev/vfio/devices", entry.name)


def group_of(address: str) -> Path:
    """The file of its group."""
    group = host.pci_device(address).group
    assert group is not None
    return Path(f"/dev/vfio/{group.number}")


def opened() -> set[str]:
    """What this process has open below /dev."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    targets = {str(link.readlink()) for link in links}
    return {target for target in targets if target.startswith(("/dev/vfio", "/dev/iommu"))}


# Which one is taken


def test_a_device_is_opened_by_its_own_file_where_there_is_one(bound: str) -> None:
    with vfio.open(bound) as device:
        assert device.iommu == "iommufd"
        assert opened() == {str(IOMMUFD), str(file_of(bound))}


def test_without_iommufd_a_device_is_opened_by_its_group(bound: str) -> None:
    hidden = IOMMUFD.with_name("iommu-hidden")
    IOMMUFD.rename(hidden)
    try:
        with vfio.open(bound) as device:
            assert device.iommu == "type1"
            assert opened() == {"/dev/vfio/vfio", str(group_of(bound))}
        with pytest.raises(vmlet.UnsupportedError, match="/dev/iommu is missing") as refused:
            vfio.open(bound, iommu="iommufd")
        assert "modprobe iommufd" in str(refused.value.remedy)
        assert opened() == set()
    finally:
        hidden.rename(IOMMUFD)


def test_a_name_of_neither_is_refused() -> None:
    with pytest.raises(vmlet.ConfigError, match='iommu cannot be "vfio"') as refused:
        vfio.open("0000:00:1f.7", iommu="vfio")  # type: ignore[arg-type]
    assert "type1" in str(refused.value.remedy)


@BOTH
def test_each_does_dma_both_ways_and_leaves_nothing(bound: str, iommu: Iommu) -> None:
    before = descriptors(), locked()
    with vfio.open(bound, iommu=iommu) as device:
        assert device.iommu == iommu
        machine = edu.Edu(device)
        source, target = device.dma(4096, readonly=True), device.dma(4096)
        source.view()[:] = PATTERN * 2
        machine.fetch(source.iova, len(PATTERN))
        machine.store(target.iova, len(PATTERN))
        assert target.view()[: len(PATTERN)] == PATTERN
        assert target.view()[len(PATTERN) :] == bytes(2048)
        assert locked() == before[1] + 8192
        # Where interrupts are sent to is left out.
        assert not any(first <= 0xFEE00000 <= last for first, last in device.dma_ranges)
    assert (descriptors(), locked()) == before


@BOTH
def test_a_guest_gets_its_device_by_either(bound: str, make: Make, iommu: Iommu) -> None:
    before = locked()
    device = vmlet.Vfio(bound, iommu=iommu)
    vm = make(kernel=IMAGE, memory="16M", pci_ports=1, engine="soft", devices=[device])
    assert vm.devices == {1: f"vfio {bound}"}
    file = file_of(bound) if iommu == "iommufd" else group_of(bound)
    assert str(file) in opened()
    assert locked() == before + (16 << 20)
    vm.close(wait=True)
    assert (opened(), locked()) == (set(), before)


@pytest.mark.parametrize(("first", "second"), [("iommufd", "type1"), ("type1", "iommufd")])
def test_a_device_that_is_open_by_one_is_in_use_for_both(
    bound: str, first: Iommu, second: Iommu
) -> None:
    with vfio.open(bound, iommu=first):
        before = descriptors()
        for iommu in (first, second):
            with pytest.raises(vmlet.StateError, match="is in use"):
                vfio.open(bound, iommu=iommu)
        with pytest.raises(vmlet.StateError, match="is in use"):
            vfio.release(bound)
        assert descriptors() == before
    vfio.open(bound, iommu=second).close()


# An ordinary user

#: Becomes one once all is imported, which an ordinary user may not read everywhere.
_AS_A_USER = """
import os, resource, sys, vmlet, vmlet.vfio
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))
device, buffers = None, []
for size in map(int, sys.stdin):
    try:
        device = device or vmlet.vfio.open(sys.argv[1], iommu="iommufd")
        buffers.append(device.dma(size))
        print("mapped", size, flush=True)
    except vmlet.HostError as error:
        print(error.errno, error.message, error.remedy, sep="|", flush=True)
"""


class User:
    """One who may lock 1 MiB, opens a device by iommufd and maps memory for it."""

    def __init__(self, address: str) -> None:
        command = [sys.executable, "-c", _AS_A_USER, address]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def __enter__(self) -> User:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=limit(60))

    def maps(self, size: int) -> str:
        """What this is answered with: "mapped", or number, message and remedy of an error."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{size}\n")
        process.stdin.flush()
        return process.stdout.readline().strip()


def test_a_user_needs_both_files_and_maps_what_may_be_locked(bound: str) -> None:
    files = (IOMMUFD, file_of(bound))
    with User(bound) as user, handed_over(*files):
        for owner, missing in ((0, files[1]), (NOBODY, files[0])):
            os.chown(files[1], owner, -1)
            os.chown(files[0], NOBODY - owner, -1)
            errno, message, remedy = user.maps(4096).split("|")
            assert (int(errno), message) == (13, f"this user may not use {missing}")
            assert f"chown USER {missing}" in remedy
        os.chown(files[0], NOBODY, -1)
        assert user.maps(3 << 18) == f"mapped {3 << 18}"
        errno, message, remedy = user.maps(1 << 19).split("|")
        assert int(errno) == 12
        # Asked for, locked, allowed.
        assert re.findall(r"\d+", message) == [str(1 << 19), str(3 << 18), str(1 << 20)]
        assert f"{512 + 768} KiB" in remedy
        assert user.maps(1 << 18) == f"mapped {1 << 18}"


def test_what_other_processes_of_a_user_have_locked_counts(bound: str) -> None:
    with edu.card().vfs(1) as (vf,):
        files = (IOMMUFD, file_of(bound), file_of(vf.address))
        with handed_over(*files), User(vf.address) as other, User(bound) as user:
            assert other.maps(3 << 18).startswith("mapped")
            assert user.maps(4096).startswith("mapped")
            errno, message, _ = user.maps(1 << 19).split("|")
    assert int(errno) == 12
    # Asked for, allowed, locked here.
    assert re.findall(r"\d+", message) == [str(1 << 19), str(1 << 20), "4096"]
