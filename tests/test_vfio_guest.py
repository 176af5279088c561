"""A device of the host, driven by a guest."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import pytest

import edu
import iommu_log
import vmlet
from conftest import limit
from guests.driven import IMAGE, MESSAGES, Driven

Make = Callable[..., vmlet.VM]

#: Config space of the device in the first root port, and the pin that its line leads to.
CONFIG, PIN = 0xE0100000, 17
COMMAND, BAR, CAPABILITIES = CONFIG + 4, CONFIG + 0x10, CONFIG + 0x34
MEMORY, MASTER, NO_LINE = 2, 4, 1 << 10
#: Where the guest has what it gives the device, and where it gets it back.
SOURCE, TARGET = 0x400000, 0x500000
PATTERN = bytes(number * 7 + 3 & 0xFF for number in range(2048))

ENGINES = pytest.mark.parametrize("engine", [pytest.param("kvm", marks=pytest.mark.kvm), "soft"])


@pytest.fixture
def bound() -> Iterator[str]:
    """The address of the device, given to VFIO for one test."""
    with edu.bound() as address:
        yield address


class Guest(Driven):
    """A guest that drives the device."""

    def __init__(self, vm: vmlet.VM) -> None:
        super().__init__(vm)
        self.bar = 0

    def find(self) -> None:
        """Switches the device on."""
        self.bar = self.read(BAR) & ~0xF
        self.serve(self.bar)
        self.write(COMMAND, MEMORY | MASTER)

    def capability(self, wanted: int) -> int:
        """Where in config space a capability is."""
        at = self.read(CAPABILITIES) & 0xFF
        while at:
            found = self.read(CONFIG + at)
            if found & 0xFF == wanted:
                return CONFIG + at
            at = found >> 8 & 0xFF
        raise LookupError(f"no capability {wanted}")

    def copy(self, source: int, target: int, count: int, command: int = 0) -> None:
        """Has the device copy, and waits for the end."""
        for register, value in (
            (edu.SOURCE, source),
            (edu.TARGET, target),
            (edu.COUNT, count),
            (edu.COMMAND, command | edu.START),
        ):
            self.write(self.bar + register, value)
        deadline = time.monotonic() + limit(5)
        while self.read(self.bar + edu.COMMAND) & edu.START:
            assert time.monotonic() < deadline, "the device does not end its copy"
            time.sleep(0.01)


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
