"""Every device goes through the same life: boot, use, pause and resume in the middle of use, save
and load, reset, hot-unplug.

A row of `KINDS` says how a device is made and used. Every device takes every step.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import networks
import vmlet
from conftest import Engine, command, initramfs, kernels, limit, short
from disks import blank, qcow2
from test_vsock import echo, program

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
    folder: Path
    device: vmlet.devices.Model | vmlet.Device

    def says(self, line: str, between: Between | None = None) -> str:
        return command(self.vm, line, timeout=60, meanwhile=between)


@dataclass(frozen=True)
class Kind:
    """How a device is made, used, and found by its driver."""

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
    line = (
        "dd if=/dev/urandom of=/a bs=64k count=32 2>/dev/null; "
        "dd if=/a of=/dev/vda bs=4k oflag=direct conv=fsync 2>/dev/null; "
        "dd if=/dev/vda of=/b bs=64k count=32 iflag=direct 2>/dev/null; cmp /a /b && echo same"
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
    return vmlet.build_initramfs(files={"bin/vsock": program()})


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
        deadline = time.monotonic() + limit(60)
        while life.vm.balloon.size != target:
            assert time.monotonic() < deadline, life.vm.balloon.size
            time.sleep(0.02)
    assert life.vm.balloon.statistics(limit(20))["free_memory"] > 0


def talks(life: Life, between: Between | None) -> None:
    life.vm.terminal.write("typed\n" * 200)
    assert life.says("head -n 200 </dev/hvc0 | tee /dev/hvc0 | wc -l", between) == "200"
    for _ in range(200):
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
    "disk": Kind(disk, copies, "virtio/drivers/virtio_blk", ("virtio_blk",)),
    "disk-qcow2": Kind(
        partial(disk, format="qcow2"), copies, "virtio/drivers/virtio_blk", ("virtio_blk",)
    ),
    "disk-overlay": Kind(
        partial(disk, overlay=True), copies, "virtio/drivers/virtio_blk", ("virtio_blk",)
    ),
    "net": Kind(
        linked,
        pings,
        "virtio/drivers/virtio_net",
        ("virtio_net",),
        ready="ip link set eth0 up; ip addr add 10.9.1.1/24 dev eth0",
    ),
    "vsock": Kind(
        lambda *_: vmlet.Vsock(),
        streams,
        "virtio/drivers/virtio_transport",
        ("vmw_vsock_virtio_transport",),
        files=vsock_program,
    ),
    "rng": Kind(lambda *_: vmlet.Rng(), rolls, "virtio/drivers/virtio_rng", ("virtio_rng",)),
    "balloon": Kind(
        lambda *_: vmlet.Balloon(),
        inflates,
        "virtio/drivers/virtio_balloon",
        ("virtio_balloon",),
    ),
    "console": Kind(
        lambda *_: vmlet.VirtioConsole(),
        talks,
        "virtio/drivers/virtio_console",
        ready="stty -F /dev/hvc0 -echo",
    ),
    "python-pci": Kind(
        lambda *_: Keeps(),
        capitals,
        "pci/drivers/uio_pci_generic",
        ("uio_pci_generic",),
        ready="echo 1234 ca95 > /sys/bus/pci/drivers/uio_pci_generic/new_id 2>/dev/null",
    ),
    "python-virtio": Kind(lambda *_: Dice(), rolls, "virtio/drivers/virtio_rng", ("virtio_rng",)),
}
#: Unbinds the driver, which resets a virtio device, and binds it again.
AGAIN = "cd /sys/bus/{0}; d=$(ls -d *[0-9]); echo $d >unbind; echo $d >bind; cd /"
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


@pytest.mark.parametrize("name", KINDS)
def test_a_device_goes_through_its_life(
    tmp_path: Path, stack: ExitStack, engine: Engine, name: str
) -> None:
    kind = KINDS[name]
    device = kind.make(tmp_path, stack)
    vm = vmlet.VM(
        kernel=kernels()[KERNEL],
        initramfs=initramfs(modules=kind.modules, kernel=KERNEL) + kind.files(),
        cmdline=short(f"{vmlet.default_cmdline(engine)} quiet loglevel=1 {RESERVED}"),
        memory="192M",
        engine=engine,
        devices=[device],
    )
    stack.callback(vm.close)
    life = Life(vm, tmp_path, device)
    # Boot, use.
    vm.start()
    vm.console.expect("# ", timeout=limit(60))
    life.says(kind.ready)
    kind.use(life, None)
    # Pause and resume in the middle of use.
    kind.use(life, lambda: between(life.vm))
    # Save and load.
    vm.pause()
    saved = vm._save()
    vm.close(wait=True)
    life.device = kind.make(tmp_path, stack)
    life.vm = vmlet.VM._restore(saved, engine=engine, devices=[life.device])
    stack.callback(life.vm.close)
    life.vm.start()
    kind.use(life, lambda: between(life.vm))
    # Reset.
    life.says(AGAIN.format(kind.driver))
    life.says(kind.ready)
    kind.use(life, None)
    # Hot-unplug.
    life.vm.detach(1, timeout=limit(40))
    assert life.vm.devices == {}
    life.says(GONE.format(kind.driver))
    assert life.says("echo goes on") == "goes on"
