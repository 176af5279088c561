"""What a disk's flush has acknowledged is there after a crash.

The image is a block device over the kernel's dm-log-writes, which notes every write in its order.
A guest writes records and makes each durable with fsync before it says so; what it says becomes a
mark in the log. Then the log is replayed to every point where the device promised something and to
200 others: at each, every record that was acknowledged before must be there.
"""

from __future__ import annotations

import functools
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vmlet
from conftest import initramfs, kernels, lacks, limit
from log_writes import Entry, apply, entries

SIZE = 16 << 20
BLOCK = 4096
WRITERS, RECORDS = 3, 12
SEED = int(os.environ.get("VMLET_SEED", "1"))

#: Each writer has its own records, so that none is written twice.
GUEST = f"""
record() {{
    yes "$(printf 'record-%09d' "$1")" | head -c {BLOCK} > /r$2
    dd if=/r$2 of=/dev/vda bs={BLOCK} seek="$1" conv=CONV 2>/dev/null &&
        echo "durable $1 ."
}}
writer() {{
    i=0
    while [ $i -lt {RECORDS} ]; do record $((i * {WRITERS} + $1)) $1; i=$((i + 1)); done
}}
for w in $(seq 0 {WRITERS - 1}); do writer $w & done
wait
echo "all written"
"""


@functools.cache
def content(record: int) -> bytes:
    line = f"record-{record:09}\n".encode()
    return (line * (BLOCK // len(line) + 1))[:BLOCK]


@pytest.fixture
def devices(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A block device and the log of what is written to it."""
    if os.geteuid() != 0 or shutil.which("dmsetup") is None:
        lacks("dm-log-writes", "it takes root and dmsetup")
    targets = _run("dmsetup", "targets", check=False)
    if "log-writes" not in targets:
        lacks("dm-log-writes", "the kernel has not loaded dm-log-writes")
    loops = [_loop(tmp_path / "image", SIZE), _loop(tmp_path / "log", 16 * SIZE)]
    name = "vmlet-durability"
    table = f"0 {SIZE // 512} log-writes {loops[0]} {loops[1]}"
    _run("dmsetup", "create", name, "--table", table)
    try:
        yield Path("/dev/mapper") / name, Path(loops[1])
    finally:
        if (Path("/dev/mapper") / name).exists():
            _run("dmsetup", "remove", name)
        for loop in loops:
            _run("losetup", "-d", loop)


def _loop(file: Path, size: int) -> str:
    with file.open("wb") as backing:
        backing.truncate(size)
    return _run("losetup", "--find", "--show", str(file)).strip()


def _run(*command: str, check: bool = True) -> str:
    environment = os.environ | {"DM_DISABLE_UDEV": "1"}
    done = subprocess.run(command, check=check, text=True, stdout=subprocess.PIPE, env=environment)
    return done.stdout


def run_guest(
    make: Callable[..., vmlet.VM], disk: vmlet.Disk, conv: str, mark: Callable[[int], None]
) -> None:
    """Has a guest write its records; ``mark`` hears of each that it calls durable."""
    script = GUEST.replace("CONV", conv)
    modules = ("virtio_pci", "virtio_blk")
    vm = make(
        kernel=kernels()["linux-6.1-cloud"],
        initramfs=initramfs(extra=script, modules=modules, kernel="linux-6.1-cloud"),
        devices=[disk],
        memory="256M",
    )
    vm.start()
    for _ in range(WRITERS * RECORDS):
        said = vm.console.expect(re.compile(rb"durable (\d+) \."), timeout=limit(60))
        mark(int(said[1]))
    vm.console.expect("all written", timeout=limit(20))
    vm.close(wait=True)


def losses(log: list[Entry], points: set[int]) -> list[tuple[int, int]]:
    """The points, as numbers of entries, at which a record that was acknowledged is missing."""
    image, acknowledged, missing = bytearray(SIZE), [], []
    for number, entry in enumerate(log):
        if entry.mark.isdigit():
            acknowledged.append(int(entry.mark))
        else:
            apply(entry, image)
        if number in points:
            missing += [
                (number, record)
                for record in acknowledged
                if image[record * BLOCK : (record + 1) * BLOCK] != content(record)
            ]
    return missing


@pytest.mark.kvm_linux
@pytest.mark.parametrize("conv", ["notrunc,fsync", "notrunc"])
def test_what_flush_acknowledged_is_there_at_every_point_of_the_write_log(
    make: Callable[..., vmlet.VM], devices: tuple[Path, Path], conv: str
) -> None:
    device, log_device = devices
    run_guest(make, vmlet.Disk(device), conv, lambda record: _mark(device, record))
    _run("dmsetup", "remove", device.name)
    with log_device.open("rb") as file:
        log = list(entries(file))
    settled = {number for number, entry in enumerate(log) if entry.settles}
    chosen = random.Random(SEED).choices(range(len(log)), k=200)
    lost = losses(log, settled | set(chosen) | {len(log) - 1})
    assert sum(1 for entry in log if entry.mark.isdigit()) == WRITERS * RECORDS
    if "fsync" not in conv:
        # A guest that calls records durable without a flush: the test must find losses, or it could
        # find none at all.
        assert lost
    else:
        assert not lost, f"{len(lost)} losses in {len(log)} entries, seed {SEED}: {lost[:5]}"
        assert len(settled) >= RECORDS


def _mark(device: Path, record: int) -> None:
    _run("dmsetup", "message", device.name, "0", f"mark {record}")
