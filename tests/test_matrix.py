"""Every device goes through the same life: boot, use, pause and resume in the middle of use, save
and load, reset, hot-unplug.

A row of `KINDS` says how a device is made and used. Every device takes every step; those that share
a guest do so together, each step for all before the next.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import networks
import vmlet
from conftest import Engine, command, initramfs, kernels, limit, short, until
from disks import blank, qcow2
from guests import program
from test_vsock import echo

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from pci_device import Capitals

pytestmark = [pytest.mark.linux, pytest.mark.engines]

KERNEL = "linux-6.12-cloud"
MIB = 1 << 20
#: What the PCI device in Python reads and writes.
RESERVED = "memmap=64K$0x7000000"

Between = Callable[[], None]


@dataclass
class Life:
    """One device's: the VM it is in, and what it has on the host."""

    vm: vmlet.VM
    kind: Kind
    folder: Path
    device: vmlet.devices.Model | vmlet.Device
    #: Its place among the devices of its guest.
    index: int

    def says(self, line: str, between: Between | None = None) -> str:
        return command(self.vm, line, timeout=60, meanwhile=between)


@dataclass(frozen=True)
class Kind:
    """How a device is made, used, and found by its driver."""

    #: Which it is in, with others. No two there have the same driver, but for disks, which have
    #: names by their places.
    guest: str
    #: The device, made of a folder that is kept and what is given up when the VM goes.
    make: Callable[[Path, ExitStack], vmlet.devices.Model | vmlet.Device]
    #: Uses it, with a call in the middle.
    use: Callable[[Life, Between | None], None]
    #: Its driver below /sys/bus.
    driver: str
    modules: tuple[str, ...] = ()
    #: Makes it ready once its driver is there.
    ready: str = ":"
    files: Callable[[], bytes] = bytes


def disk(folder: Path, _: ExitStack, **options: Any) -> vmlet.Disk:
    image = folder / "disk"
    if not image.exists():
        (qcow2 if options.get("format") == "qcow2" else blank)(image)
    return vmlet.Disk(image, **options)


def copies(life: Life, between: Between | None) -> None:
    node = f"/dev/vd{'abc'[life.index]}"
    line = (
        "dd if=/dev/urandom of=/a bs=64k count=4 2>/dev/null; "
        f"dd if=/a of={node} bs=4k oflag=direct conv=fsync 2>/dev/null; "
        f"dd if={node} of=/b bs=64k count=4 iflag=direct 2>/dev/null; cmp /a /b && echo same"
    )
    assert life.says(line, between) == "same"


def linked(_: Path, stack: ExitStack) -> vmlet.Net:
    return vmlet.Net(peer=stack.enter_context(networks.responder()))


def pings(life: Life, between: Between | None) -> None:
    assert "5 packets received" in life.says("ping -c 5 -i 0.1 10.9.1.2", between)


def streams(life: Life, between: Between | None) -> None:
    with life.vm.vsock.listen(52) as listener:

        def serve() -> None:
            echo(listener.accept(timeout=limit(60))[0])

        thread = threading.Thread(target=serve)
        thread.start()
        assert life.says("vsock send 52 1000000", between) == "1000000 bytes, 0 wrong"
        thread.join(limit(30))


def vsock_program() -> bytes:
    return vmlet.build_initramfs(files={"bin/vsock": program("vsock")})


def rolls(life: Life, between: Between | None) -> None:
    line = "dd if=/dev/hwrng bs=32 count=64 2>/dev/null | tee /a | wc -c"
    assert life.says(line, between) == "2048"
    if isinstance(life.device, Dice):
        assert life.says("tr -d 4 </a | wc -c") == "0"


def inflates(life: Life, between: Between | None) -> None:
    for target in (24 * MIB, 4 * MIB):
        life.vm.balloon.target = target
        if between is not None:
            between()
        assert life.vm.balloon.target == target
        until(lambda: life.vm.balloon.size == life.vm.balloon.target)
    assert life.vm.balloon.statistics(limit(20))["free_memory"] > 0


def talks(life: Life, between: Between | None) -> None:
    life.vm.terminal.write("typed\n" * 12)
    assert life.says("head -n 12 </dev/hvc0 | tee /dev/hvc0 | wc -l", between) == "12"
    for _ in range(12):
        life.vm.terminal.expect("typed\r\n", timeout=limit(20))


class Dice(vmlet.VirtioDevice):
    """An entropy device with the randomness of one throw."""

    device_type = 4
    queues = (64,)

    def notified(self, queue: vmlet.Queue) -> None:
        for chain in queue:
            chain.write(b"4" * chain.writable)


class Keeps(Capitals):
    """The example's device, whose registers are saved."""

    def save(self) -> bytes:
        return b"".join(value.to_bytes(8, "little") for value in self.registers.values())

    def restore(self, state: bytes) -> None:
        for number, register in enumerate(self.registers):
            self.registers[register] = int.from_bytes(state[number * 8 : number * 8 + 8], "little")


#: Memory, bus master and INTx on: the driver masks the latter at each interrupt.
CAPITALS = r"""
dev=$(echo /sys/bus/pci/drivers/uio_pci_generic/0000:*)
printf '\006\000' | dd of=$dev/config bs=2 seek=2 conv=notrunc 2>/dev/null
bar=$(head -n1 $dev/resource | cut -d' ' -f1)
reg() { devmem $((bar + $1)) 32 $2; }
devmem 0x7000000 32 0x6c6c6568
reg 0 0x7000000; reg 4 0x7000100; reg 8 4
dd if=/dev/uio0 of=/irq bs=4 count=1 2>/dev/null &
sleep 0.2; reg 12 1; wait; reg 16 1; devmem 0x7000100
"""


def capitals(life: Life, between: Between | None) -> None:
    # "HELL"
    assert life.says("; ".join(CAPITALS.strip().splitlines()).replace("&;", "&"), between) == (
        "0x4C4C4548"
    )


KINDS = {
    "disk": Kind("disks-python", disk, copies, "virtio/drivers/virtio_blk", ("virtio_blk",)),
    "disk-qcow2": Kind(
        "disks-python",
        partial(disk, format="qcow2"),
        copies,
        "virtio/drivers/virtio_blk",
        ("virtio_blk",),
    ),
    "disk-overlay": Kind(
        "disks-python",
        partial(disk, overlay=True),
        copies,
        "virtio/drivers/virtio_blk",
        ("virtio_blk",),
    ),
    "net": Kind(
        "links",
        linked,
        pings,
        "virtio/drivers/virtio_net",
        ("virtio_net",),
        ready="ip link set eth0 up; ip addr add 10.9.1.1/24 dev eth0",
    ),
    "vsock": Kind(
        "links",
        lambda *_: vmlet.Vsock(),
        streams,
        "virtio/drivers/virtio_transport",
        ("vmw_vsock_virtio_transport",),
        files=vsock_program,
    ),
    "rng": Kind(
        "links", lambda *_: vmlet.Rng(), rolls, "virtio/drivers/virtio_rng", ("virtio_rng",)
    ),
    "balloon": Kind(
        "links",
        lambda *_: vmlet.Balloon(),
        inflates,
        "virtio/drivers/virtio_balloon",
        ("virtio_balloon",),
    ),
    "console": Kind(
        "links",
        lambda *_: vmlet.VirtioConsole(),
        talks,
        "virtio/drivers/virtio_console",
        ready="stty -F /dev/hvc0 -echo",
    ),
    "python-pci": Kind(
        "disks-python",
        lambda *_: Keeps(),
        capitals,
        "pci/drivers/uio_pci_generic",
        ("uio_pci_generic",),
        ready="echo 1234 ca95 > /sys/bus/pci/drivers/uio_pci_generic/new_id 2>/dev/null",
    ),
    "python-virtio": Kind(
        "disks-python", lambda *_: Dice(), rolls, "virtio/drivers/virtio_rng", ("virtio_rng",)
    ),
}
#: Unbinds the driver, which resets a virtio device, and binds it again.
AGAIN = "cd /sys/bus/{0}; for d in *[0-9]; do echo $d >unbind; echo $d >bind; done; cd /"
#: Waits until no device is left to the driver.
GONE = "cd /sys/bus/{0}; while ls -d *[0-9] 2>/dev/null; do sleep 0.1; done >/dev/null; cd /"


def between(vm: vmlet.VM) -> None:
    """Pauses, some of them long enough for the host to answer meanwhile."""
    for number in range(8):
        vm.pause()
        time.sleep(0.01 * (number % 2))
        vm.resume()
        time.sleep(0.01)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("guest", dict.fromkeys(kind.guest for kind in KINDS.values()))
def test_devices_go_through_their_lives(
    tmp_path: Path, stack: ExitStack, engine: Engine, guest: str
) -> None:
    kinds = {name: kind for name, kind in KINDS.items() if kind.guest == guest}
    folders = {name: tmp_path / name for name in kinds}
    for folder in folders.values():
        folder.mkdir()

    def made() -> list[vmlet.devices.Model | vmlet.Device]:
        return [kind.make(folders[name], stack) for name, kind in kinds.items()]

    def step(name: str, take: Callable[[Life], object]) -> None:
        for device, life in lives.items():
            try:
                take(life)
            except BaseException as error:
                error.add_note(f"{device}: {name}")
                raise

    def use_in_pieces(life: Life) -> None:
        life.kind.use(life, lambda: between(life.vm))

    files = b"".join(kind.files() for kind in kinds.values())
    modules = tuple(dict.fromkeys(module for kind in kinds.values() for module in kind.modules))
    had = made()
    vm = vmlet.VM(
        kernel=kernels()[KERNEL],
        initramfs=initramfs(modules=modules, kernel=KERNEL) + files,
        cmdline=short(f"{vmlet.default_cmdline(engine)} quiet loglevel=1 {RESERVED}"),
        memory="192M",
        engine=engine,
        devices=had,
    )
    stack.callback(vm.close)
    lives = {
        name: Life(vm, kind, folders[name], device, index)
        for index, ((name, kind), device) in enumerate(zip(kinds.items(), had, strict=True))
    }
    vm.start()
    vm.console.expect("# ", timeout=limit(60))
    step("ready", lambda life: life.says(life.kind.ready))
    step("use", lambda life: life.kind.use(life, None))
    step("pause and resume in the middle of use", use_in_pieces)

    vm.pause()
    saved = vm._save()
    vm.close(wait=True)
    had = made()
    vm = vmlet.VM._restore(saved, engine=engine, devices=had)
    stack.callback(vm.close)
    for life, device in zip(lives.values(), had, strict=True):
        life.vm, life.device = vm, device
    vm.start()
    step("use after save and load", use_in_pieces)

    for driver in dict.fromkeys(kind.driver for kind in kinds.values()):
        command(vm, AGAIN.format(driver), timeout=60)
    step("ready after reset", lambda life: life.says(life.kind.ready))
    step("use after reset", lambda life: life.kind.use(life, None))

    # The guest's driver waits five seconds each, for somebody to change their mind.
    with ThreadPoolExecutor() as pool:
        slots = range(1, len(lives) + 1)
        list(pool.map(lambda slot: vm.detach(slot, timeout=limit(40)), slots))
    assert vm.devices == {}
    step("gone", lambda life: life.says(GONE.format(life.kind.driver)))
    assert command(vm, "echo goes on") == "goes on"
