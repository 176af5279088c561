"""Debian from an ext4 root on a disk: what its fio writes is what it reads."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vmlet
from conftest import Engine, command, kernels, lacks, limit, short
from disks import debian, with_disks
from guests import roots

pytestmark = pytest.mark.linux

Make = Callable[..., vmlet.VM]

KERNEL = "linux-6.12-cloud"
MIB = 1 << 20
SIZE = 64 * MIB
#: Leaves the initramfs for the root that is on the disk.
SWITCH = """
mkdir -p /root
mount -t ext4 /dev/vda /root
mount --move /dev /root/dev
mount --move /proc /root/proc
exec setsid cttyhack switch_root /root /bin/bash
"""
#: Writes at random, sixteen requests at a time and past the guest's cache, then reads and checks.
FIO = (
    f"fio --name=check --filename=/data --size={SIZE} --bs=64k --rw=randwrite --direct=1 "
    "--ioengine=libaio --iodepth=16 --thread --disk_util=0 --verify=crc32c --verify_fatal=1 "
    "--output-format=json 2>/dev/null"
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The disk that has the root."""
    root = kernels().get("storage")
    if root is None:
        lacks("storage", "no Debian root with fio here: run ci/kernels first")
    return debian(tmp_path / "root.img", Path(root))


def booted(make: Make, engine: Engine, image: Path) -> vmlet.VM:
    """The shell of Debian on ``image``."""
    vm = make(
        kernel=kernels()[KERNEL],
        initramfs=with_disks(KERNEL, SWITCH),
        cmdline=short(f"{vmlet.default_cmdline(engine)} quiet loglevel=1"),
        devices=[vmlet.Disk(image, queues=2)],
        cpus=2,
        memory="256M",
    )
    vm.start()
    vm.console.expect("# ", timeout=limit(60))
    return vm


def fio(vm: vmlet.VM, options: str = "", meanwhile: Callable[[], None] | None = None) -> Any:
    """What fio says of its job, and how it ended."""
    said = command(vm, f"{FIO} {options}; echo status=$?", 120, meanwhile)
    report, _, status = said.rpartition("status=")
    (job,) = json.loads(report[report.index("{") :])["jobs"]
    return job, int(status)


def pauses(vm: vmlet.VM, seconds: float) -> None:
    """Ten of them, this far from each other."""
    for _ in range(10):
        vm.pause()
        vm.resume()
        time.sleep(seconds)


@pytest.mark.engines
def test_what_fio_writes_on_an_ext4_root_is_what_it_reads_across_pauses(
    make: Make, engine: Engine, image: Path
) -> None:
    vm = booted(make, engine, image)

    empty = stored(image)

    def while_it_writes() -> None:
        deadline = time.monotonic() + limit(60)
        while stored(image) < empty + SIZE // 8:
            assert time.monotonic() < deadline, "fio does not begin"
            time.sleep(0.002)
        vm.pause()
        assert stored(image) < empty + SIZE
        vm.resume()
        pauses(vm, 0.02)

    job, status = fio(vm, meanwhile=while_it_writes)
    assert (status, job["error"]) == (0, 0)
    assert (job["write"]["io_bytes"], job["read"]["io_bytes"]) == (SIZE, SIZE)
    # Where one of its blocks lies on the disk; then another byte there.
    extents = command(vm, "filefrag -e /data")
    found = re.search(r"^ +0: +0\.\. +\d+: +(\d+)\.\.", extents, re.MULTILINE)
    assert found, extents
    flip(image, int(found[1]) * roots.BLOCK + 100)
    job, status = fio(vm, "--verify_only")
    assert status != 0
    assert job["error"] == 84
    flip(image, int(found[1]) * roots.BLOCK + 100)
    job, status = fio(vm, "--verify_only", lambda: pauses(vm, 0.1))
    assert (status, job["error"], job["read"]["io_bytes"]) == (0, 0, SIZE)


def stored(image: Path) -> int:
    """Bytes that the host has stored of it."""
    return image.stat().st_blocks * 512


def flip(image: Path, at: int) -> None:
    """Changes one byte of the disk beneath the guest."""
    with image.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
