"""`Memory.dirty`: the pages that were written since it was last called, by bitmap and by rings."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

import vmlet
from conftest import limit
from guests import guest

FIRST, END = 0x100_0000, 0x200_0000
#: Far fewer than the pages that the guests write.
RING = 1024

#: Writes a byte in every second page from 16 to 32 MiB for ever, and counts in EBP how often.
WRITES = f"""
1:  mov ${FIRST:#x}, %ebx
2:  movb $1, (%ebx)
    add $0x2000, %ebx
    cmp ${END:#x}, %ebx
    jb 2b
    inc %ebp
    jmp 1b
"""

rings = pytest.mark.parametrize(
    "ring",
    [
        pytest.param(None, marks=pytest.mark.kvm, id="bitmap"),
        pytest.param(RING, marks=pytest.mark.kvm_linux, id="ring"),
    ],
)


def pages(extents: list[tuple[int, int]]) -> set[int]:
    """Addresses of the pages from 16 to 32 MiB in ``extents``."""
    found = {at for start, size in extents for at in range(start, start + size, 4096)}
    return {at for at in found if FIRST <= at < END}


EVERY_SECOND = set(range(FIRST, END, 0x2000))


def written_over(vm: vmlet.VM) -> None:
    """Returns once the guest has written all its pages anew."""
    before = vm.vcpus[0].regs.rbp
    deadline = time.monotonic() + limit(20)
    while vm.vcpus[0].regs.rbp < before + 2:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@rings
def test_pages_written_while_the_guest_runs_are_told_exactly(
    make: Callable[..., vmlet.VM], ring: int | None
) -> None:
    vm = make(kernel=guest(WRITES), memory="64M", cpus=2, dirty_ring=ring)
    vm.start()
    assert pages(vm.memory.dirty()) == set(range(FIRST, END, 4096))
    for _ in range(3):
        written_over(vm)
        assert pages(vm.memory.dirty()) == EVERY_SECOND
    vm.pause()
    vm.memory.dirty()
    assert pages(vm.memory.dirty()) == set()


@rings
def test_what_this_process_writes_is_told_too(
    make: Callable[..., vmlet.VM], ring: int | None
) -> None:
    vm = make(kernel=guest("spin"), memory="64M", dirty_ring=ring)
    vm.memory.dirty()
    vm.memory[FIRST + 5 : FIRST + 6] = b"x"
    assert pages(vm.memory.dirty()) == {FIRST}


@pytest.mark.kvm_linux
@pytest.mark.parametrize("ring", [0, 1000, 512, 1 << 31])
def test_a_ring_that_cannot_be_is_refused_with_those_that_can(
    make: Callable[..., vmlet.VM], ring: int
) -> None:
    with pytest.raises(vmlet.ConfigError) as caught:
        make(kernel=guest("spin"), dirty_ring=ring)
    assert f"{ring} entries" in caught.value.message
    assert "power of two from 1024" in str(caught.value.remedy)


@pytest.mark.parametrize("ring", ["1024", -1, 1.5, 1 << 40])
def test_what_is_no_number_of_entries_is_refused(ring: Any) -> None:
    with pytest.raises(vmlet.ConfigError, match="dirty_ring cannot be"):
        vmlet.VM(kernel=guest("spin"), dirty_ring=ring)


def test_the_software_cpu_refuses_rings() -> None:
    with pytest.raises(vmlet.UnsupportedError, match="lacks a dirty ring") as caught:
        vmlet.VM(kernel=guest("spin"), engine="soft", dirty_ring=RING)
    assert "Leave dirty_ring out" in str(caught.value.remedy)


@pytest.mark.kvm
def test_a_kvm_that_interprets_supervisor_code_is_refused_rings() -> None:
    if vmlet.capabilities()["runs_kernels"]:
        pytest.skip("needs such a KVM")
    with pytest.raises(vmlet.UnsupportedError, match="interprets supervisor code") as caught:
        vmlet.VM(kernel=guest("spin"), engine="kvm", dirty_ring=RING)
    assert "Leave dirty_ring out" in str(caught.value.remedy)
