"""An NVMe controller of the host that shares its queues: virtual functions, driven by guests."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import edu
import vmlet
from conftest import command, initramfs, kernels, lacks, limit
from vmlet import cli, host, vfio
from vmlet.nvme import NvmeController

Make = Callable[..., vmlet.VM]

#: Has NVMe and ext2 built in.
KERNEL = "linux-6.12-cloud"
#: Class, subclass and programming interface of NVMe controllers.
NVME = 0x010802
NOTES = Path("/run/vmlet")
#: All that the lab's controller can have, and what each of its two virtual functions gets of that.
WHOLE = NvmeController(0, online=True, queues=7, interrupts=5)
QUEUES, INTERRUPTS = 2, 1


def state(card: host.PciDevice) -> tuple[object, ...]:
    """All that has to be as before: the card, its switches, its queues, and what is noted."""
    found = host.pci_device(card.address)
    folder = Path("/sys/bus/pci/devices", card.address)
    noted = [path for path in NOTES.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return (
        *(found.driver, found.driver_override, found.virtual_functions, sorted(noted)),
        *((folder / name).read_text() for name in ("sriov_drivers_autoprobe", "nvme/nvme0/state")),
        found.nvme,
    )


#: NVME_IOCTL_ADMIN_CMD and struct nvme_admin_cmd of the kernel's nvme_ioctl.h.
_ADMIN, _COMMAND = 0xC0484E41, struct.Struct("=BBHIIIQQIIIIIIIIII")
#: Virtualization Management: its opcode, and what gives a primary controller its part.
_MANAGE, _ALLOCATE = 0x1C, 1


def allocate(card: host.PciDevice, queues: int, interrupts: int) -> None:
    """Gives the controller itself so much of what it can share, without the code under test."""
    folder = Path("/sys/bus/pci/devices", card.address)
    with Path("/dev/nvme0").open("rb") as controller:
        for resource, count in enumerate((queues, interrupts)):
            words = (resource << 8 | _ALLOCATE, count, 0, 0, 0, 0, 0, 0)
            command = _COMMAND.pack(_MANAGE, 0, 0, 0, 0, 0, 0, 0, 0, 0, *words)
            assert fcntl.ioctl(controller, _ADMIN, bytearray(command)) == 0
    (folder / "reset").write_text("1")
    deadline = time.monotonic() + limit(5)
    while (folder / "nvme/nvme0/state").read_text() != "live\n":
        assert time.monotonic() < deadline, "the controller does not come back"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole() -> host.PciDevice:
    """The lab's controller, which has all that there is."""
    every = (one for one in host.pci_devices() if one.class_code == NVME and one.virtual_functions)
    found = next(every, None)
    if found is None or os.environ.get("VMLET_LAB") != "nvme":
        lacks("nvme", "only a controller of the lab is made to share its queues")
    allocate(found, 4, 2)
    return found


@pytest.fixture
def card(whole: host.PciDevice) -> Iterator[host.PciDevice]:
    """That controller, which is after the test as it was before."""
    before = state(whole)
    assert whole.nvme == WHOLE
    yield whole
    after = state(whole)
    whole.remove_vfs()
    assert after == before


def test_virtual_functions_are_online_with_an_equal_part(card: host.PciDevice) -> None:
    with card.vfs(2) as vfs:
        assert [one.driver for one in vfs] == ["vfio-pci", "vfio-pci"]
        assert [one.nvme for one in vfs] == [
            NvmeController(number, online=True, queues=QUEUES, interrupts=INTERRUPTS)
            for number in (1, 2)
        ]
        left = WHOLE.queues - 2 * QUEUES, WHOLE.interrupts - 2 * INTERRUPTS
        assert (card.nvme.queues, card.nvme.interrupts) == left
        with vfs[0].open() as device:
            device.reset()
        assert vfs[0].nvme.online
    assert card.nvme == WHOLE


def test_the_card_keeps_what_one_virtual_function_does_not_need(card: host.PciDevice) -> None:
    with card.vfs(1, queues=2, interrupts=1):
        assert (card.nvme.queues, card.nvme.interrupts) == (WHOLE.queues - 2, WHOLE.interrupts - 1)


def test_what_cannot_be_shared_is_refused_with_what_can(card: host.PciDevice) -> None:
    before = state(card)
    for queues, interrupts, told in (
        (3, None, "can have 2 to 2 queues, not 3"),
        (1, None, "can have 2 to 2 queues, not 1"),
        (None, 2, "can have 1 to 1 interrupts, not 2"),
    ):
        with pytest.raises(vmlet.ConfigError, match=told):
            card.create_vfs(2, queues=queues, interrupts=interrupts)
    assert state(card) == before


def test_an_exception_gives_everything_back(card: host.PciDevice) -> None:
    with pytest.raises(ZeroDivisionError), card.vfs(1):
        raise ZeroDivisionError


def test_mend_gives_back_what_a_killed_process_shared(card: host.PciDevice) -> None:
    before = state(card)
    with edu.killed_with_functions(card.address, 1):
        (vf,) = (one for one in host.pci_devices() if one.physical_function == card.address)
        assert vf.nvme.online
    assert state(card) != before
    assert vfio.mend() == [card.address]
    assert state(card) == before


def test_the_command_line_shares_and_gives_back(
    card: host.PciDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> str:
        assert cli.main(["sriov", *words]) == 0
        return capsys.readouterr().out

    made = run("create", card.address, "1", "--queues", "2", "--interrupts", "1", "--json")
    ((vf,),) = (one["vfs"] for one in json.loads(made))
    assert host.pci_device(vf["address"]).nvme.queues == 2
    assert run("remove", card.address) == f"{card.address}  nvme  vfs 0/2\n"


#: 4 MiB of random bytes in a new file system, written, read back and told.
_WRITE = (
    "until [ -e /dev/nvme0n1 ]; do sleep 0.1; done; mkdir -p /m; mke2fs /dev/nvme0n1 > /dev/null; "
    "mount -t ext2 /dev/nvme0n1 /m; dd if=/dev/urandom of=/m/data bs=1M count=4 2> /dev/null; "
    "umount /m; echo 3 > /proc/sys/vm/drop_caches; mount -t ext2 -o ro /dev/nvme0n1 /m; "
    "md5sum < /m/data; umount /m; grep -c nvme0q /proc/interrupts"
)


@pytest.mark.kvm_linux
def test_what_a_guest_writes_by_a_virtual_function_the_card_reads(
    card: host.PciDevice, make: Make, tmp_path: Path
) -> None:
    with card.vfs(1) as (vf,):
        vm = make(
            kernel=kernels()[KERNEL],
            initramfs=initramfs(),
            engine="kvm",
            memory="128M",
            devices=[vmlet.Vfio(vf)],
        )
        vm.start()
        vm.console.expect("# ", timeout=limit(60))
        digest, vectors = command(vm, _WRITE, timeout=60).splitlines()
        vm.close(wait=True)
        # One vector for both queues, as that is its share.
        assert int(vectors) == 1
        assert vf.nvme.online
    place = tmp_path / "mounted"
    place.mkdir()
    subprocess.run(["mount", "-t", "ext4", "-o", "ro", "/dev/nvme0n1", place], check=True)
    try:
        data = (place / "data").read_bytes()
    finally:
        subprocess.run(["umount", place], check=True)
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    assert (len(data), f"{found}  -") == (4 << 20, digest)
