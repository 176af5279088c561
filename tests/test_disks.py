"""Disks: Debian's kernel reads and writes images of the host."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import vmlet
from conftest import Engine, Shared, default_engine, initramfs, kernels, lacks, limit, short
from disks import blank, command, ext4, with_disks

pytestmark = pytest.mark.linux

Make = Callable[..., vmlet.VM]

KERNEL = "linux-6.12-cloud"
#: How a disk can be opened, for which the guest sees no difference.
OPENED: tuple[dict[str, Any], ...] = ({}, {"direct": True}, {"overlay": True}, {"queues": 4})


def copy(disk: str = "/dev/vda") -> str:
    """Writes 3 MiB of random bytes and compares what the disk gives back with them."""
    return (
        "mkdir -p /tmp; [ -e /tmp/a ] || dd if=/dev/urandom of=/tmp/a bs=1M count=3 2>/dev/null; "
        f"dd if=/tmp/a of={disk} bs=1M oflag=direct conv=fsync 2>/dev/null; "
        "echo 3 > /proc/sys/vm/drop_caches; "
        f"dd if={disk} of=/tmp/b bs=64k count=48 iflag=direct 2>/dev/null; "
        "cmp /tmp/a /tmp/b && echo same"
    )


def quiet() -> str:
    """The default command line, with nothing of the kernel's on the console."""
    return short(f"{vmlet.default_cmdline(default_engine())} quiet loglevel=1")


def booted(make: Make, *devices: vmlet.devices.Model, **settings: Any) -> vmlet.VM:
    """A shell that sees ``devices``."""
    settings = {"kernel": kernels()[KERNEL], "initramfs": with_disks(KERNEL), **settings}
    vm = make(devices=devices, cmdline=quiet(), **settings)
    vm.start()
    vm.console.expect("# ", timeout=limit(60))
    return vm


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[vmlet.VM, Path]]:
    """A shell that sees disks of three kinds and random bytes, and the folder of their images."""
    folder = tmp_path_factory.mktemp("several")
    (folder / "full").write_bytes(b"x" * (16 << 20))
    devices = (
        vmlet.Disk(blank(folder / "small", 1 << 20), serial="number 7"),
        vmlet.Disk(blank(folder / "fixed"), readonly=True),
        vmlet.Disk(folder / "full"),
        vmlet.Rng(),
    )
    modules = ("virtio_pci", "virtio_blk", "virtio_rng")
    files = initramfs(modules=modules, kernel=KERNEL)
    vm = booted(vmlet.VM, *devices, initramfs=files, engine=default_engine())
    yield vm, folder
    vm.close()


def has_direct_io(folder: Path) -> bool:
    """Whether files of ``folder`` can be read without the page cache."""
    try:
        os.close(os.open(folder / "probe", os.O_CREAT | os.O_RDWR | os.O_DIRECT))
    except OSError:
        return False
    return True


@pytest.fixture
def opened(
    tmp_path_factory: pytest.TempPathFactory, shared: Shared, engine: Engine
) -> tuple[vmlet.VM, list[Path]]:
    """A shell that sees a disk opened in each way, and their images."""
    folder = tmp_path_factory.getbasetemp() / f"opened-{engine}"
    images = [folder / str(number) for number in range(len(OPENED))]

    def make() -> vmlet.VM:
        folder.mkdir(exist_ok=True)
        if not has_direct_io(folder):
            lacks("direct-io", f"the file system of {folder} has no direct I/O")
        pairs = zip(images, OPENED, strict=True)
        disks = [vmlet.Disk(blank(image), **options) for image, options in pairs]
        return booted(vmlet.VM, *disks, engine=engine)

    return shared(engine, make), images


@pytest.mark.engines
def test_what_is_written_is_read_however_the_disk_is_opened(
    opened: tuple[vmlet.VM, list[Path]], engine: Engine
) -> None:
    vm, images = opened
    for letter, image, options in zip("abcd", images, OPENED, strict=True):
        assert command(vm, copy(f"/dev/vd{letter}")) == "same", options
        with image.open("rb") as file:
            written = any(file.read(4096))
        assert written is not options.get("overlay", False)


@pytest.mark.engines
def test_files_survive_into_the_next_vm(make: Make, tmp_path: Path, engine: Engine) -> None:
    (tmp_path / "files").mkdir()
    image = ext4(tmp_path / "disk.img", tmp_path / "files")
    for number in range(2):
        vm = booted(make, vmlet.Disk(image))
        assert command(vm, "mkdir /m; mount /dev/vda /m; ls /m | grep -c file") == str(number)
        command(vm, f"echo text > /m/file{number}; umount /m")
        vm.close()


@pytest.mark.engines
def test_a_pause_in_the_middle_of_writing_loses_nothing(
    opened: tuple[vmlet.VM, list[Path]], engine: Engine
) -> None:
    vm, _ = opened
    vm.console.write(f"rm -f /tmp/a; {copy()}-after-all\n".replace("echo same", "echo sa''me"))
    for _ in range(20):
        vm.pause()
        vm.resume()
    vm.console.expect("same-after-all", timeout=limit(60))


def test_a_disk_has_its_serial_number_and_size(several: tuple[vmlet.VM, Path]) -> None:
    vm, _ = several
    assert (
        command(vm, "cat /sys/block/vda/serial; echo; cat /sys/block/vda/size") == "number 7\n2048"
    )


def test_a_read_only_disk_refuses_writes(several: tuple[vmlet.VM, Path]) -> None:
    vm, _ = several
    assert command(vm, "cat /sys/block/vdb/ro") == "1"
    assert "not permitted" in command(vm, "dd if=/proc/version of=/dev/vdb 2>&1")


def test_several_vms_share_an_image_that_none_of_them_writes(make: Make, tmp_path: Path) -> None:
    image = blank(tmp_path / "disk.img")
    vms = [booted(make, vmlet.Disk(image, overlay=True)) for _ in range(2)]
    for number, vm in enumerate(vms):
        command(vm, f"echo text{number} > /dev/vda; sync")
    for number, vm in enumerate(vms):
        assert command(vm, "head -n 1 /dev/vda") == f"text{number}"
    with pytest.raises(vmlet.ConfigError, match="in use"):
        make(kernel=kernels()[KERNEL], devices=[vmlet.Disk(image)])


def test_discarded_blocks_give_their_room_back(several: tuple[vmlet.VM, Path]) -> None:
    vm, folder = several
    before = (folder / "full").stat().st_blocks
    assert command(vm, "blkdiscard /dev/vdc && echo gone") == "gone"
    assert (folder / "full").stat().st_blocks < before / 4


def test_random_bytes_come_from_the_host(several: tuple[vmlet.VM, Path]) -> None:
    vm, _ = several
    assert command(vm, "cat /sys/class/misc/hw_random/rng_current") == "virtio_rng.0"
    assert command(vm, "head -c 32 /dev/hwrng | wc -c") == "32"


@pytest.mark.interpreted
def test_a_saved_vm_goes_on_with_its_disk(make: Make, tmp_path: Path) -> None:
    image = blank(tmp_path / "disk.img")
    vm = booted(make, vmlet.Disk(image), cpu="soft-v1", engine="soft")
    command(vm, "echo before > /dev/vda; sync")
    vm.pause()
    saved = vm._save()
    vm.close()
    with vmlet.VM._restore(saved, engine="soft", devices=[vmlet.Disk(image)]) as again:
        again.start()
        assert command(again, "head -n 1 /dev/vda") == "before"
        assert command(again, copy()) == "same"


@pytest.mark.interpreted
def test_two_counted_boots_with_a_disk_are_the_same(make: Make, tmp_path: Path) -> None:
    script = (
        "mkdir -p /m; mount -t ext4 /dev/vda /m; echo a > /m/a; cat /m/a; "
        f"umount /m; {copy()}; head -c 8 /dev/hwrng | od -t x1; cat /proc/interrupts; poweroff -f"
    )
    (tmp_path / "files").mkdir()
    image = ext4(tmp_path / "disk.img", tmp_path / "files")
    ends = []
    for pauses in (0, 10):
        vm = make(
            kernel=kernels()[KERNEL],
            initramfs=with_disks(KERNEL, script),
            cmdline=f"{vmlet.default_cmdline('soft')} quiet",
            clock="icount",
            devices=[vmlet.Disk(image, overlay=True), vmlet.Rng()],
            engine="soft",
        )
        for _ in range(pauses):
            vm.run_for(instructions=7_000_003)
        vm.start() if pauses == 0 else vm.resume()
        assert vm.wait(timeout=limit(120)).kind == "poweroff"
        ends.append((vm.instructions, vm.state_hash(), vm.console.read()))
        vm.close()
    assert b"same" in ends[0][2]
    assert ends[0] == ends[1]


_FULL = """
import logging, resource, signal, sys
import vmlet
from disks import command

kernel, initramfs, image = sys.argv[1:]
logging.basicConfig(stream=sys.stderr)
# Writes past 1 MiB into the file fail, as on a full disk.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
with vmlet.VM(kernel=kernel, initramfs=initramfs, devices=[vmlet.Disk(image)]) as vm:
    vm.start()
    vm.console.expect("# ", timeout=60)
    print(command(vm, "dd if=/dev/zero of=/dev/vda bs=4k seek=512 count=1 oflag=direct 2>&1"))
    print(command(vm, "dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct 2>&1"))
"""


@pytest.mark.skipif("VMLET_LAB" in os.environ, reason="once is enough")
def test_a_write_that_the_host_refuses_is_an_error_in_the_guest_and_a_record_on_the_host(
    tmp_path: Path,
) -> None:
    files = tmp_path / "initramfs"
    files.write_bytes(with_disks(KERNEL))
    arguments = [kernels()[KERNEL], str(files), str(blank(tmp_path / "disk.img"))]
    done = subprocess.run(
        [sys.executable, "-c", _FULL, *arguments],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        timeout=limit(120),
        check=True,
    )
    assert "error writing" in done.stdout or "I/O error" in done.stdout, done.stdout
    assert "1+0 records out" in done.stdout
    assert "the guest sees an I/O error" in done.stderr
