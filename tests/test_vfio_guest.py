"""A device of the host, driven by a guest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import edu
import iommu_log
import vmlet
from conftest import command, holdings, initramfs, kernels, limit, short
from edu_guest import MASTER, MEMORY, Guest
from guests.driven import IMAGE, MESSAGES
from ordinary_user import handed_over
from vmlet import host, vfio

Make = Callable[..., vmlet.VM]

#: Config space of the device in the first root port, and the pin that its line leads to.
CONFIG, PIN = 0xE0100000, 17
COMMAND, BAR = CONFIG + 4, CONFIG + 0x10
NO_LINE = 1 << 10
#: Where the guest has what it gives the device, and where it gets it back.
SOURCE, TARGET = 0x400000, 0x500000
PATTERN = bytes(number * 7 + 3 & 0xFF for number in range(2048))

ENGINES = pytest.mark.parametrize("engine", [pytest.param("kvm", marks=pytest.mark.kvm), "soft"])


@pytest.fixture
def bound() -> Iterator[str]:
    """The address of the device, given to VFIO for one test."""
    with edu.bound() as address:
        yield address


@pytest.fixture
def driven(bound: str, make: Make) -> Callable[[str], Guest]:
    """A guest of that engine with the device in its first root port."""

    def start(engine: str) -> Guest:
        vm = make(
            kernel=IMAGE,
            engine=engine,
            memory="64M",
            pci_ports=2,
            devices=[vmlet.Vfio(bound)],
        )
        vm.start()
        guest = Guest(vm)
        guest.find()
        return guest

    return start


Start = Callable[[str], Guest]


@ENGINES
def test_registers_are_the_devices(driven: Start, bound: str, engine: str) -> None:
    guest = driven(engine)
    assert guest.vm.devices == {1: f"vfio {bound}"}
    assert guest.vm.devices[1].ats is False or os.geteuid()
    assert guest.read(CONFIG) == edu.DEVICE << 16 | edu.VENDOR
    assert guest.read(guest.bar + edu.ID) & 0xFF == 0xED
    guest.write(guest.bar + edu.LIVENESS, 0x12345678)
    assert guest.read(guest.bar + edu.LIVENESS) == 0x12345678 ^ 0xFFFFFFFF


@ENGINES
def test_dma_goes_both_ways_to_the_guests_own_addresses(driven: Start, engine: str) -> None:
    guest = driven(engine)
    memory = guest.vm.memory
    memory[SOURCE : SOURCE + len(PATTERN)] = PATTERN
    guest.copy(SOURCE, edu.OWN, len(PATTERN))
    guest.copy(edu.OWN, TARGET, len(PATTERN), edu.TO_MEMORY)
    assert memory[TARGET : TARGET + len(PATTERN)] == PATTERN
    assert memory[TARGET + len(PATTERN) : TARGET + len(PATTERN) + 16] == bytes(16)


@ENGINES
def test_a_message_interrupts_the_guest(driven: Start, engine: str) -> None:
    guest = driven(engine)
    msi = guest.capability(5)
    guest.write(msi + 4, 0xFEE00000)
    guest.write(msi + 12, MESSAGES)
    guest.write(msi, 1 << 16)
    for number in (1, 2, 3):
        guest.write(guest.bar + edu.RAISE, 1 << number)
        assert guest.wait(0, number) & 1 << number
    # What comes while it is masked goes out when it is unmasked.
    guest.write(msi + 16, 1)
    guest.write(guest.bar + edu.RAISE, 0x10)
    time.sleep(limit(0.05))
    assert guest.interrupts[:2] == (0, 3)
    guest.write(msi + 16, 0)
    assert guest.wait(0, 4) & 0x10


@ENGINES
def test_the_line_interrupts_the_guest_again_and_again(driven: Start, engine: str) -> None:
    guest = driven(engine)
    guest.set_pin(PIN)
    for number in (1, 2, 3):
        guest.write(guest.bar + edu.RAISE, 1 << number)
        assert guest.wait(number, 0) & 1 << number
    # Disabled, the device asks in vain; what it still asks for comes once the line is enabled.
    guest.write(COMMAND, MEMORY | MASTER | NO_LINE)
    guest.write(guest.bar + edu.RAISE, 0x10)
    time.sleep(limit(0.05))
    assert guest.interrupts[:2] == (3, 0)
    guest.write(COMMAND, MEMORY | MASTER)
    assert guest.wait(4, 0) & 0x10


@ENGINES
def test_dma_outside_of_the_guests_memory_changes_nothing_and_is_logged(
    driven: Start, bound: str, engine: str
) -> None:
    guest = driven(engine)
    outside = len(guest.vm.memory) + 0x1000
    with iommu_log.faults() as faults:
        guest.copy(edu.OWN, outside, 16, edu.TO_MEMORY)
        told = faults()
    assert ("Write", re.sub("^0000:", "", bound), outside) in told


@ENGINES
def test_a_guest_resets_the_device_and_goes_on_with_it(driven: Start, engine: str) -> None:
    guest = driven(engine)
    # Initiate Function Level Reset.
    guest.write(guest.capability(0x10) + 8, 1 << 15)
    assert guest.read(COMMAND) & 0xFFFF == 0
    guest.write(BAR, guest.bar)
    guest.find()
    assert guest.read(guest.bar + edu.ID) & 0xFF == 0xED
    guest.set_pin(PIN)
    guest.write(guest.bar + edu.RAISE, 1)
    assert guest.wait(1, 0) == 1


@ENGINES
def test_registers_follow_their_bar_and_go_with_memory_decoding(driven: Start, engine: str) -> None:
    guest = driven(engine)
    places = [guest.bar, guest.bar + (2 << 20), guest.bar]
    for place in places:
        guest.write(COMMAND, 0)
        assert guest.read(guest.bar + edu.ID) == 0xFFFFFFFF
        guest.write(BAR, place)
        guest.find()
        assert guest.bar == place
        assert guest.read(guest.bar + edu.ID) & 0xFF == 0xED
    assert guest.read(places[1] + edu.ID) == 0xFFFFFFFF


@pytest.mark.kvm
def test_under_kvm_registers_are_reached_without_an_exit(driven: Start) -> None:
    guest = driven("kvm")
    before = guest.vm.exits().memory_reads.total()
    for number in range(5):
        guest.write(guest.bar + edu.LIVENESS, number)
        assert guest.read(guest.bar + edu.LIVENESS) == number ^ 0xFFFFFFFF
    assert guest.vm.exits().memory_reads.total() == before


# The life of a device in a guest


def test_nothing_is_left_of_a_guests_device(bound: str, make: Make) -> None:
    before = holdings()
    vm = make(kernel=IMAGE, memory="64M", pci_ports=1, devices=[vmlet.Vfio(bound)], engine="soft")
    assert holdings()[1] == before[1] + (64 << 20)
    with pytest.raises(vmlet.StateError, match="is in use"):
        vfio.open(bound)
    vm.start()
    vm.close(wait=True)
    assert holdings() == before
    vfio.open(bound).close()


def come_and_go(vm: vmlet.VM, address: str, rounds: int) -> None:
    """Plugs the device into a running guest, which uses it, and tears it out, again and again."""
    guest = Guest(vm)
    bar = guest.read(0xE0008020) << 16 & 0xFFF00000
    before = holdings()
    for number in range(1, rounds + 1):
        assert vm.attach(vmlet.Vfio(address)) == 1
        guest.write(BAR, bar)
        guest.find()
        assert guest.bar == bar
        guest.set_pin(PIN)
        guest.write(bar + edu.RAISE, 1)
        guest.wait(number, 0)
        vm.detach(1, pull=True)
        assert guest.read(bar + edu.ID) == 0xFFFFFFFF
        assert (holdings(), vm.devices) == (before, {})


@ENGINES
def test_it_comes_and_goes_while_a_guest_runs(bound: str, make: Make, engine: str) -> None:
    vm = make(kernel=IMAGE, engine=engine, memory="64M", pci_ports=1)
    vm.start()
    come_and_go(vm, bound, 5)


def test_a_device_that_the_host_has_is_refused_and_everything_is_as_before() -> None:
    function = edu.find()
    before = holdings()
    with pytest.raises(vmlet.StateError, match="vfio-pci") as refused:
        vmlet.VM(kernel=IMAGE, memory="64M", engine="soft", devices=[vmlet.Vfio(function)])
    assert f"vmlet vfio bind {function.address}" in str(refused.value.remedy)
    assert holdings() == before


def test_a_refused_device_leaves_the_vm_as_it_was(bound: str, make: Make) -> None:
    vm = make(kernel=IMAGE, memory="64M", pci_ports=1, engine="soft")
    vm.start()
    before = holdings()
    with vfio.open(bound), pytest.raises(vmlet.StateError, match="is in use"):
        vm.attach(vmlet.Vfio(bound))
    for port in (2, 31):
        with pytest.raises(vmlet.ConfigError, match="root port"):
            vm.attach(vmlet.Vfio(bound), port=port)
    with pytest.raises(vmlet.ConfigError, match=r"0000:ff:1f\.7"):
        vm.attach(vmlet.Vfio("0000:ff:1f.7"))
    assert (holdings(), vm.devices) == (before, {})
    assert vm.attach(vmlet.Vfio(host.pci_device(bound))) == 1
    assert vm.devices == {1: f"vfio {bound}"}
    vm.detach(1, pull=True)
    assert (holdings(), vm.devices) == (before, {})


def test_a_vm_with_a_device_is_not_saved_and_goes_on(bound: str, make: Make) -> None:
    vm = make(kernel=IMAGE, memory="64M", pci_ports=1, devices=[vmlet.Vfio(bound)], engine="soft")
    vm.start()
    vm.pause()
    with pytest.raises(vmlet.StateError, match=f"vfio {bound} in root port 1"):
        vm._save()
    vm.detach(1, pull=True)
    vm._save()


def test_a_counted_run_has_no_device(bound: str) -> None:
    with pytest.raises(vmlet.ConfigError, match="counted"):
        vmlet.VM(kernel=IMAGE, memory="64M", clock="icount", devices=[vmlet.Vfio(bound)])
    vfio.open(bound).close()


def test_a_host_that_wants_the_device_back_is_heard_and_gets_it(make: Make) -> None:
    found = edu.find()
    vfio.bind(found.address)
    path = Path("/sys/bus/pci/devices", found.address)
    device = vmlet.Vfio(found)
    vm = make(kernel=IMAGE, memory="64M", pci_ports=1, devices=[device], engine="soft")
    vm.start()
    removing = threading.Thread(target=(path / "remove").write_text, args=["1"])
    removing.start()
    heard = next(event for event in vm.events(timeout=limit(5)) if event.source == "host")
    assert (heard.kind, heard.detail) == ("device-removal", f"vfio {found.address}")
    assert removing.is_alive()
    vm.detach(1, pull=True)
    removing.join(limit(5))
    assert not path.exists()
    Path("/sys/bus/pci/rescan").write_text("1")
    vfio.release(found.address)
    assert edu.find().address == found.address


@pytest.mark.parametrize("address", ["", "edu", "0000:01:00.8", 7, None])
def test_what_is_no_address_is_refused(address: object) -> None:
    with pytest.raises(vmlet.ConfigError, match="vmlet vfio list"):
        vmlet.Vfio(address)  # type: ignore[arg-type]


#: An ordinary user makes a VM whose memory is more than may be locked.
_AS_A_USER = """
import logging, os, resource, sys, vmlet, vmlet.devices, vmlet.host, vmlet.vfio
image = open(sys.argv[2], "rb").read()
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 << 20, 8 << 20))
for memory in ("4M", "16M"):
    try:
        device = vmlet.Vfio(sys.argv[1])
        with vmlet.VM(kernel=image, memory=memory, engine="soft", devices=[device]) as vm:
            print(vm.devices, vm.devices[1].ats, vm.devices[1].ats_unknown_because, sep="|")
    except vmlet.HostError as error:
        print(error.errno, error.message, error.remedy, sep="|")
"""


def test_a_user_is_told_how_much_must_be_locked(bound: str, tmp_path: Path) -> None:
    group = host.pci_device(bound).group
    assert group is not None
    file = Path(f"/dev/vfio/{group.number}")
    image = tmp_path / "image"
    image.write_bytes(IMAGE)
    with handed_over(file):
        done = subprocess.run(
            [sys.executable, "-c", _AS_A_USER, bound, str(image)],
            capture_output=True,
            text=True,
            check=False,
            timeout=limit(60),
        )
    assert done.returncode == 0, done.stderr
    small, large = done.stdout.splitlines()
    assert small == f"{ ({1: f'vfio {bound}'}) }|None|only root may read capabilities"
    errno, message, remedy = large.split("|")
    assert errno == "12"
    assert f"{16 << 20} bytes for DMA" in message
    assert str(8 << 20) in message
    assert f"{16 << 10} KiB" in remedy


# Debian

KERNEL = "linux-6.12-cloud"
RESERVED = 0x7000000
#: Registers by `reg OFFSET [VALUE]`; the driver that hands the line to programs has the device.
_UIO = f"""
cat > /uio << 'END'
echo {edu.VENDOR:x} {edu.DEVICE:x} > /sys/bus/pci/drivers/uio_pci_generic/new_id
ready() {{
  until [ -e /dev/uio0 ]; do sleep 0.1; done
  dev=$(echo /sys/bus/pci/drivers/uio_pci_generic/0000:*)
  printf '\\006' | dd of=$dev/config bs=1 seek=4 conv=notrunc 2> /dev/null
  bar=$(head -n1 $dev/resource | cut -d' ' -f1)
}}
reg() {{ devmem $((bar + $1)) 32 $2; }}
copied() {{ while [ $(($(reg {edu.COMMAND}) & 1)) = 1 ]; do sleep 0.1; done; }}
copy() {{
  reg {edu.SOURCE} $1; reg {edu.TARGET} $2; reg {edu.COUNT} $3
  reg {edu.COMMAND} $4; copied
}}
irq() {{
  dd if=/dev/uio0 of=/irq bs=4 count=1 2> /dev/null &
  reg {edu.RAISE} $1
  wait
  echo "$(hexdump -v -e '1/4 "%d"' /irq) $(reg {edu.RAISED})"
  reg {edu.ACKNOWLEDGE} $1
  printf '\\000' | dd of=$dev/config bs=1 seek=5 conv=notrunc 2> /dev/null
}}
END
"""


def debian_root() -> bytes:
    """Debian's root with that driver and that of a balloon."""
    return initramfs(_UIO, ("uio_pci_generic", "virtio_balloon"), KERNEL)


@pytest.mark.kvm_linux
def test_debian_drives_it_and_lets_go_of_it_again_and_again(bound: str, make: Make) -> None:
    before = holdings()
    vm = make(
        kernel=kernels()[KERNEL],
        initramfs=debian_root(),
        cmdline=short(f"{vmlet.default_cmdline('kvm')} memmap=64K${RESERVED:#x}"),
        engine="kvm",
        memory="128M",
        pci_ports=2,
        devices=[vmlet.Balloon()],
    )
    vm.start()
    vm.console.expect("# ", timeout=limit(60))
    command(vm, ". /uio")
    empty = holdings()
    for _ in range(2):
        assert vm.attach(vmlet.Vfio(bound)) == 2
        given_back, kept = vm.balloon.given_back, vm.balloon.kept
        command(vm, "ready")
        assert command(vm, f"reg {edu.LIVENESS} 0x12345678; reg {edu.LIVENESS}") == "0xEDCBA987"
        fetch = f"copy {RESERVED} {edu.OWN} 8 {edu.START}"
        store = f"copy {edu.OWN} {RESERVED + 256} 8 {edu.START | edu.TO_MEMORY}"
        words = f"devmem {RESERVED + 256} 32; devmem {RESERVED + 260} 32"
        text = f"devmem {RESERVED} 32 0x6c6c6568; devmem {RESERVED + 4} 32 0x6f"
        assert command(vm, f"{text}; {fetch}; {store}; {words}").split() == [
            "0x6C6C6568",
            "0x0000006F",
        ]
        assert command(vm, "irq 1; irq 2").splitlines() == ["1 0x00000001", "2 0x00000002"]
        # What the balloon is given stays where the device may write to it.
        vm.balloon.target = "8M"
        deadline = time.monotonic() + limit(10)
        while vm.balloon.size < 8 << 20:
            assert time.monotonic() < deadline, "the guest gives nothing up"
            time.sleep(0.05)
        assert vm.balloon.given_back == given_back
        assert vm.balloon.kept >= kept + (8 << 20)
        vm.balloon.target = 0
        vm.detach(2, timeout=limit(30))
        assert (vm.devices, holdings()) == ({1: "virtio-balloon"}, empty)
    vm.close(wait=True)
    assert holdings() == before
