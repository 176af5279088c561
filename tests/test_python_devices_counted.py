"""Devices written in Python under the instruction clock."""

from __future__ import annotations

from pathlib import Path

import pytest

import vmlet
from conftest import limit
from guests import guest
from test_python_devices import AT, COUNTS, END, INTERRUPTED, Adder

pytestmark = pytest.mark.interpreted


def test_posted_writes_come_one_by_one_and_runs_are_the_same() -> None:
    def run() -> str:
        adder = Adder(posted=True)
        with vmlet.VM(kernel=guest(COUNTS), clock="icount", devices=[adder]) as vm:
            vm.run(timeout=limit(20))
            assert [len(batch) for batch in adder.batches] == [1] * 100
            return vm.state_hash()

    assert run() == run()


class Source(vmlet.MmioDevice):
    """Interrupts thrice, and writes memory."""

    left = 3

    def write(self, offset: int, size: int, value: int) -> None:
        self.vm.memory[0x210000:0x210001] = bytes([self.left])
        self.left -= value == 2
        if self.left:
            self.irq.pulse()


def test_a_recorded_run_with_a_device_replays(tmp_path: Path) -> None:
    kernel = guest(INTERRUPTED.replace("MODE", "0") + END)
    with vmlet.VM(kernel=kernel, clock="icount", devices=[Source(at=AT, size=8, irq=5)]) as vm:
        vm.record(tmp_path / "record")
        vm.run(timeout=limit(20))
        found = vm.instructions, vm.state_hash()
    device = Source(at=AT, size=8, irq=5)
    with vmlet.VM.replay(tmp_path / "record", devices=[device], kernel=kernel) as again:
        again.run(timeout=limit(20))
        assert (again.instructions, again.state_hash()) == found
    assert device.left == 0
