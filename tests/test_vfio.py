"""A device of the host, driven from Python by `vmlet.vfio`."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import edu
import iommu_log
import vmlet
from conftest import Holdings, descriptors, limit, locked
from vmlet import host, vfio

#: What the device holds and fetches.
PATTERN = bytes(number * 7 + 3 & 0xFF for number in range(2048))
ELSEWHERE = 0x8000000


@pytest.fixture
def bound() -> Iterator[str]:
    """The address of the device, given to VFIO for one test."""
    with edu.bound() as address:
        yield address


@pytest.fixture
def device(bound: str) -> Iterator[vfio.Device]:
    with vfio.open(bound) as opened:
        yield opened


@pytest.fixture
def machine(device: vfio.Device) -> edu.Edu:
    return edu.Edu(device)


@pytest.fixture
def faults() -> Iterator[Callable[[], list[iommu_log.Fault]]]:
    """What the IOMMU logs of refused accesses from now on."""
    with iommu_log.faults() as told:
        yield told


def identity(registers: memoryview) -> int:
    """The first byte of the device's first register, which has to be read whole."""
    return registers.cast("I")[edu.ID // 4] & 0xFF


# Registers


def test_a_bar_is_read_and_written(machine: edu.Edu) -> None:
    registers = machine.registers
    assert registers.read(edu.ID) & 0xFF == 0xED
    registers.write(edu.LIVENESS, 0x12345678)
    assert registers.read(edu.LIVENESS) == 0x12345678 ^ 0xFFFFFFFF


def test_a_bar_is_a_memory_view(machine: edu.Edu) -> None:
    words = machine.registers.view(0, 4096).cast("I")
    assert words[edu.ID // 4] & 0xFF == 0xED
    words[edu.FACTORIAL // 4] = 10
    while words[edu.STATUS // 4] & 1:
        time.sleep(0.001)
    assert words[edu.FACTORIAL // 4] == 3628800


def test_config_space_names_the_device(device: vfio.Device) -> None:
    assert device.config.read(0, 2) == edu.VENDOR
    assert device.config.read(2, 2) == edu.DEVICE


def test_registers_outside_of_a_region_are_refused(device: vfio.Device) -> None:
    bar = device.bars[0]
    for call in (lambda: bar.read(bar.size), lambda: bar.write(bar.size, 0)):
        with pytest.raises(vmlet.ConfigError, match="does not lie in"):
            call()
    for offset, length in ((bar.size, 4096), (0, bar.size + 4096), (1, 4096)):
        with pytest.raises(vmlet.ConfigError):
            bar.view(offset, length)
    with pytest.raises(vmlet.ConfigError, match="width"):
        bar.read(0, 3)
    with pytest.raises(vmlet.ConfigError, match="multiple"):
        bar.read(2)
    with pytest.raises(vmlet.ConfigError, match="does not fit"):
        bar.write(0, 1 << 32)


def test_memory_stays_on_while_registers_are_mapped(device: vfio.Device) -> None:
    command = device.config.read(4, 2)
    view = device.bars[0].view(0, 4096)
    with pytest.raises(vmlet.StateError, match="would end this process"):
        device.config.write(4, command & ~2, 2)
    assert identity(view) == 0xED
    del view
    gc.collect()
    device.config.write(4, command & ~2, 2)
    # A view switches it on again.
    assert identity(device.bars[0].view(0, 4096)) == 0xED


# DMA


def test_dma_goes_both_ways(machine: edu.Edu, device: vfio.Device) -> None:
    source, target = device.dma(4096), device.dma(4096)
    assert source.iova != target.iova
    assert target.iova + target.size <= edu.HIGHEST
    source.view()[: len(PATTERN)] = PATTERN
    machine.fetch(source.iova, len(PATTERN))
    machine.store(target.iova, len(PATTERN))
    assert bytes(target.view()[: len(PATTERN)]) == PATTERN


def test_read_only_memory_is_read(machine: edu.Edu, device: vfio.Device) -> None:
    source, target = device.dma(4096, readonly=True), device.dma(4096)
    source.view()[: len(PATTERN)] = PATTERN
    machine.fetch(source.iova, len(PATTERN))
    machine.store(source.iova, 16)
    iommu_log.unread()
    machine.store(target.iova, len(PATTERN))
    assert source.readonly
    assert not target.readonly
    assert bytes(source.view()[: len(PATTERN)]) == PATTERN
    assert bytes(target.view()[: len(PATTERN)]) == PATTERN


def test_a_write_to_read_only_memory_changes_nothing_and_is_logged(
    machine: edu.Edu,
    device: vfio.Device,
    faults: Callable[[], list[iommu_log.Fault]],
) -> None:
    page = device.dma(4096, iova=0x2000000, readonly=True)
    page.view()[:16] = b"stays as it was."
    machine.fetch(device.dma(4096).iova, 64)
    # Not read first: the emulator drops what its translation cache refuses, and logs nothing.
    machine.store(page.iova, 16)
    assert bytes(page.view()[:16]) == b"stays as it was."
    assert ("Write", device.address.removeprefix("0000:"), page.iova) in faults()


def test_a_read_of_what_is_not_mapped_gives_nothing_and_is_logged(
    machine: edu.Edu,
    device: vfio.Device,
    faults: Callable[[], list[iommu_log.Fault]],
) -> None:
    buffer = device.dma(4096)
    buffer.view()[: len(PATTERN)] = PATTERN
    machine.fetch(buffer.iova, len(PATTERN))
    machine.fetch(ELSEWHERE, 16)
    machine.store(buffer.iova, 16)
    assert bytes(buffer.view()[:16]) in (bytes(16), b"\xff" * 16)
    assert ("Read", device.address.removeprefix("0000:"), ELSEWHERE) in faults()


def test_a_write_to_what_was_just_unmapped_changes_nothing_and_is_logged(
    machine: edu.Edu,
    device: vfio.Device,
    faults: Callable[[], list[iommu_log.Fault]],
) -> None:
    buffer = device.dma(4096, iova=0x1000000)
    view = buffer.view()
    view[: len(PATTERN)] = PATTERN
    machine.fetch(buffer.iova, len(PATTERN))
    machine.store(buffer.iova, 64)
    buffer.unmap()
    assert not buffer.mapped
    view[:] = b"\x11" * 4096
    machine.store(buffer.iova, 16)
    assert bytes(view) == b"\x11" * 4096
    assert ("Write", device.address.removeprefix("0000:"), buffer.iova) in faults()


def test_a_message_to_an_entry_that_is_not_present_is_blocked_and_logged(
    machine: edu.Edu,
) -> None:
    """Intel VT-d specification, section 5.1.2.2 (the remappable format) and chapter 7 (reason 22h:
    the entry is not present). No interrupt of the kernel's has an entry so far up."""
    entry = 0x7F00
    with iommu_log.blocked() as told:
        machine.store(0xFEE00000 | entry << 5 | 1 << 4, 4)
        assert told() == [(entry, 0x22)]


def test_memory_stays_mapped_when_nobody_has_it(machine: edu.Edu, device: vfio.Device) -> None:
    before = locked()
    iova = device.dma(4096).iova
    gc.collect()
    assert locked() == before + 4096
    machine.fetch(iova, 64)
    machine.store(device.dma(4096).iova, 64)


def test_unmapped_memory_goes_with_its_buffer(device: vfio.Device) -> None:
    before = Holdings.now().writable
    buffer = device.dma(64 << 20)
    assert Holdings.now().writable >= before + (64 << 20)
    buffer.unmap()
    del buffer
    assert Holdings.now().writable < before + (32 << 20)


def test_addresses_are_checked(device: vfio.Device) -> None:
    assert device.page_size == 4096
    buffer = device.dma(8192, iova=0x100000)
    with pytest.raises(vmlet.StateError, match="overlaps the map at 0x100000"):
        device.dma(4096, iova=0x101000)
    # Where interrupts are sent to, no memory can be.
    with pytest.raises(vmlet.ConfigError, match="0xfee00000"):
        device.dma(4096, iova=0xFEE00000)
    for size, iova in ((0, None), (100, None), (4096, 0x200001)):
        with pytest.raises(vmlet.ConfigError, match="page"):
            device.dma(size, iova=iova)
    buffer.unmap()
    device.dma(4096, iova=0x101000)


# Interrupts


def test_an_interrupt_is_waited_for(machine: edu.Edu, device: vfio.Device) -> None:
    (interrupt,) = device.enable("MSI")
    with pytest.raises(vmlet.TimeoutError, match="MSI interrupt 0"):
        interrupt.wait(timeout=0.01)
    machine.registers.write(edu.RAISE, 0x55)
    assert interrupt.wait(timeout=limit(2)) == 1
    assert machine.acknowledge() == 0x55


def test_an_interrupt_is_awaited(machine: edu.Edu, device: vfio.Device) -> None:
    (interrupt,) = device.enable("MSI")
    buffer = device.dma(4096)

    async def copied() -> int:
        machine.start(buffer.iova, edu.OWN, 64, edu.INTERRUPT)
        return await asyncio.wait_for(interrupt, limit(5))

    for _ in range(2):
        assert asyncio.run(copied()) == 1
        assert machine.acknowledge() == edu.COPIED


def test_several_tasks_await_one_interrupt(machine: edu.Edu, device: vfio.Device) -> None:
    (interrupt,) = device.enable("MSI")
    before = descriptors()

    async def both() -> None:
        first, second = (asyncio.ensure_future(_arrival(interrupt)) for _ in range(2))
        await asyncio.sleep(0)
        machine.registers.write(edu.RAISE, 1)
        done, _ = await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == 1
        machine.acknowledge()
        machine.registers.write(edu.RAISE, 1)
        await asyncio.wait_for(asyncio.gather(first, second), limit(5))
        machine.acknowledge()

    asyncio.run(both())
    assert descriptors() == before


async def _arrival(interrupt: vfio.Interrupt) -> int:
    return await interrupt


def test_a_line_comes_again_once_it_is_unmasked(machine: edu.Edu, device: vfio.Device) -> None:
    (line,) = device.enable("INTx")
    for value in (1, 2):
        machine.registers.write(edu.RAISE, value)
        assert line.wait(timeout=limit(2)) == 1
        assert machine.acknowledge() == value
        device.unmask()


#: Registers of the card igb (82576 data sheet, section 8.8): which vectors are sent, which a write
#: raises, and that vectors are several.
_MASK_SET, _CAUSE_SET, _PURPOSE, _SEVERAL = 0x1524, 0x1520, 0x1514, 1 << 4


def test_vectors_of_a_table_are_told_apart() -> None:
    card = edu.card()
    card.bind()
    with card.open() as device:
        vectors = device.enable("MSI-X", 4)
        registers = device.bars[0]
        registers.write(_PURPOSE, _SEVERAL)
        for number in (2, 0):
            registers.write(_MASK_SET, 1 << number)
            registers.write(_CAUSE_SET, 1 << number)
            assert vectors[number].wait(timeout=limit(2)) == 1
        for vector in vectors:
            with pytest.raises(vmlet.TimeoutError):
                vector.wait(timeout=0)
    assert card.release().driver == card.driver


def test_kinds_of_interrupts_are_checked(device: vfio.Device) -> None:
    with pytest.raises(vmlet.ConfigError, match="has 0 MSI-X interrupts, not 1"):
        device.enable("MSI-X")
    with pytest.raises(vmlet.ConfigError, match="not 0"):
        device.enable("MSI", 0)
    with pytest.raises(vmlet.ConfigError, match="kind"):
        device.enable("NMI")  # type: ignore[arg-type]
    device.enable("MSI")
    with pytest.raises(vmlet.StateError, match=r"MSI interrupts of .* are on"):
        device.enable("INTx")
    device.disable()
    device.enable("INTx")


def test_who_waits_when_the_device_is_closed_is_told(bound: str) -> None:
    device = vfio.open(bound)
    (interrupt,) = device.enable("MSI")
    told: list[BaseException] = []

    def wait() -> None:
        try:
            interrupt.wait(timeout=limit(20))
        except vmlet.ClosedError as error:
            told.append(error)

    async def close_while_awaited() -> None:
        waiting = asyncio.ensure_future(_arrival(interrupt))
        await asyncio.sleep(0)
        device.close()
        with pytest.raises(vmlet.ClosedError):
            await asyncio.wait_for(waiting, limit(5))

    thread = threading.Thread(target=wait)
    thread.start()
    asyncio.run(close_while_awaited())
    thread.join(limit(5))
    assert len(told) == 1


# The life of a device


def test_nothing_is_left_of_a_closed_device() -> None:
    found = edu.find()
    before = found.driver, found.driver_override, descriptors(), locked()
    vfio.bind(found.address)
    assert host.pci_device(found.address).driver == "vfio-pci"
    device = vfio.open(found.address)
    machine = edu.Edu(device)
    (interrupt,) = device.enable("MSI")
    buffer, registers = device.dma(1 << 20), device.bars[0].view()
    assert locked() == before[3] + (1 << 20)
    machine.fetch(buffer.iova, 64)
    # Everything is held still.
    device.close()
    device.close()
    assert (descriptors(), locked()) == before[2:]
    vfio.release(found.address)
    after = host.pci_device(found.address)
    assert (after.driver, after.driver_override) == before[:2]
    # What is held is harmless.
    assert identity(registers) == 0
    buffer.view()[:4] = b"mine"
    for call in (
        lambda: interrupt.wait(timeout=0),
        lambda: machine.registers.read(0),
        lambda: device.dma(4096),
        lambda: device.enable("MSI"),
        lambda: machine.registers.view(),
        interrupt.fileno,
    ):
        with pytest.raises(vmlet.ClosedError):
            call()


def test_a_device_that_is_dropped_is_closed(bound: str) -> None:
    before = descriptors()
    vfio.open(bound).dma(4096)
    assert descriptors() == before
    vfio.open(bound).close()


def test_a_device_that_is_closed_while_others_work_leaves_nothing(bound: str) -> None:
    def work(device: vfio.Device) -> None:
        try:
            while True:
                device.dma(4096).view()
                device.bars[0].view(0, 4096)
                device.config.read(0)
        except vmlet.ClosedError:
            pass

    before = descriptors(), locked()
    for _ in range(5):
        with vfio.open(bound) as device:
            working = [threading.Thread(target=work, args=[device]) for _ in range(2)]
            for thread in working:
                thread.start()
            time.sleep(0.02)
        for thread in working:
            thread.join(limit(5))
            assert not thread.is_alive()
    assert (descriptors(), locked()) == before


def test_a_device_in_use_is_not_given_away_and_not_opened_twice(bound: str) -> None:
    with vfio.open(bound):
        with pytest.raises(vmlet.StateError, match="is in use"):
            vfio.open(bound)
        with pytest.raises(vmlet.StateError, match="is in use"):
            vfio.release(bound)
    vfio.open(bound).close()


def test_a_forked_child_has_nothing_of_it(device: vfio.Device) -> None:
    registers, buffer = device.bars[0].view(), device.dma(4096)
    memory = buffer.view()
    memory[0] = 7
    child = os.fork()
    if child == 0:
        try:
            device.config.read(0)
        except vmlet.ForkedProcessError:
            os._exit(0 if (identity(registers), memory[0]) == (0, 0) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (identity(registers), memory[0]) == (0xED, 7)


def test_a_device_without_a_reset_of_its_own_says_so(device: vfio.Device) -> None:
    if device.resets:
        device.reset()
        assert edu.Edu(device).registers.read(edu.ID) & 0xFF == 0xED
    else:
        with pytest.raises(vmlet.UnsupportedError, match="no way"):
            device.reset()


def test_a_host_that_wants_the_device_back_is_heard() -> None:
    found = edu.find()
    vfio.bind(found.address)
    path = Path("/sys/bus/pci/devices", found.address)
    with vfio.open(found.address) as device:
        assert device.removal is not None
        with pytest.raises(vmlet.TimeoutError, match="removal"):
            device.removal.wait(timeout=0)
        removing = threading.Thread(target=(path / "remove").write_text, args=["1"])
        removing.start()
        assert device.removal.wait(timeout=limit(2)) >= 1
        assert edu.Edu(device).registers.read(edu.ID) & 0xFF == 0xED
        assert removing.is_alive()
    removing.join(limit(5))
    assert not path.exists()
    with pytest.raises(vmlet.ConfigError, match="no PCI function"):
        vfio.open(found.address)
    Path("/sys/bus/pci/rescan").write_text("1")
    # The note of the one that went is that of the one that came: it had no driver either.
    vfio.release(found.address)
    assert edu.find().address == found.address
