"""`VM.walk`: the guest's page tables explained, with the engine's own walk as the oracle."""

from __future__ import annotations

import ctypes
import json
import random
import runpy
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

import vmlet
from conftest import initramfs, kernels, limit
from guests import guest

pytestmark = pytest.mark.engines

ROOT = 0x20_0000
PRESENT, WRITABLE, USER, LARGE, NO_EXECUTE = 1, 2, 4, 0x80, 1 << 63
ALL = PRESENT | WRITABLE | USER
SIZES = {1: 4096, 2: 2 << 20, 3: 1 << 30}


class Tables:
    """Four levels of page tables that a test writes into a VM's memory."""

    def __init__(self, vm: vmlet.VM) -> None:
        self._vm = vm
        self._next = ROOT + 0x1000
        sregs = vm.vcpus[0].sregs
        code = replace(sregs.cs, attributes=0xA09B)
        vm.vcpus[0].sregs = replace(
            sregs, cr3=ROOT, cr4=sregs.cr4 | 0x20, efer=0xD00, cr0=sregs.cr0 | 0x8000_0001, cs=code
        )

    def map(self, linear: int, entry: int, level: int = 1) -> int:
        """Sets the entry of ``level`` for ``linear``; where it lies."""
        table = ROOT
        for above in range(4, level, -1):
            at = table + ((linear >> (12 + 9 * (above - 1))) & 511) * 8
            (found,) = struct.unpack("<Q", self._vm.memory[at : at + 8])
            if not found & PRESENT:
                found = self._next | ALL
                self._next += 0x1000
                self.set(at, found)
            table = found & 0x000F_FFFF_FFFF_F000
        at = table + ((linear >> (12 + 9 * (level - 1))) & 511) * 8
        self.set(at, entry)
        return at

    def set(self, at: int, entry: int) -> None:
        self._vm.memory[at : at + 8] = struct.pack("<Q", entry)


@pytest.fixture
def vm(make: Callable[..., vmlet.VM]) -> vmlet.VM:
    """A VM of 64 MiB that is not started."""
    return make(kernel=guest("hlt"), memory="64M")


def test_a_walk_names_its_entries_its_page_and_the_slot_behind(vm: vmlet.VM) -> None:
    at = Tables(vm).map(0x7FFF_1234_5000, 0x30_0000 | PRESENT | USER | NO_EXECUTE)
    walk = vm.walk(0x7FFF_1234_5678)
    assert [step.name for step in walk.steps] == ["PML4E", "PDPTE", "PDE", "PTE"]
    assert [step.page_size for step in walk.steps] == [None, None, None, 4096]
    assert (walk.levels, walk.cr3, walk.steps[-1].gpa) == (4, ROOT, at)
    assert (walk.gpa, walk.page_size, walk.fault) == (0x30_0678, 4096, None)
    assert (walk.writable, walk.user, walk.executable) == (False, True, False)
    assert all(step.executable for step in walk.steps[:3])
    stage = walk.second_stage
    assert stage is not None
    assert (stage.slot_gpa, stage.slot_length) == (0, 64 << 20)
    assert (stage.page_size, stage.limit) == (2 << 20, "backing")
    assert stage.hva % 4096 == 0x678
    assert vm.translate(0x7FFF_1234_5678) == 0x30_0678


def test_the_address_in_this_process_is_where_the_memory_is(vm: vmlet.VM) -> None:
    Tables(vm).map(0x1000, 0x30_0000 | ALL)
    vm.memory[0x30_0000:0x30_0004] = b"here"
    stage = vm.walk(0x1000).second_stage
    assert stage is not None
    assert ctypes.string_at(stage.hva, 4) == b"here"


def test_a_two_mebibyte_page_ends_the_walk_at_the_directory(vm: vmlet.VM) -> None:
    Tables(vm).map(0, ALL | LARGE, 2)
    walk = vm.walk(0x12_3456)
    assert (walk.gpa, walk.page_size, len(walk.steps)) == (0x12_3456, 2 << 20, 3)


def test_a_gibibyte_page_is_one_where_the_guest_may_use_them(vm: vmlet.VM) -> None:
    """Without them (KVM on shadow tables offers none) the page bit is reserved."""
    Tables(vm).map(0, ALL | LARGE, 3)
    walk = vm.walk(0x12_3456)
    if vm._machine.engine_translate(0x12_3456, 0) is None:
        assert walk.fault == "the entry of level 3 has a reserved bit set"
    else:
        assert (walk.gpa, walk.page_size, len(walk.steps)) == (0x12_3456, 1 << 30, 2)


def test_the_cause_of_a_fault_is_named(vm: vmlet.VM) -> None:
    tables = Tables(vm)
    at = tables.map(0x1000, 0)
    walk = vm.walk(0x1000)
    assert walk.fault == "the entry of level 1 is not present"
    assert (walk.gpa, walk.second_stage, len(walk.steps)) == (None, None, 4)
    tables.map(0, ALL | LARGE | 0x2000, 2)
    assert vm.walk(0).fault == "the entry of level 2 has a reserved bit set"
    tables.map(1 << 39, 0xFF_0000_0000 | ALL, 4)
    fault = vm.walk(1 << 39).fault
    assert fault == "the table of level 3 is no memory: its entry would be at 0xff00000000"
    assert vm.walk(1 << 47).fault == "the address is not canonical"
    with pytest.raises(vmlet.GuestError, match="is not canonical"):
        vm.translate(1 << 47)
    assert at > ROOT


def test_a_page_outside_memory_has_no_second_stage(vm: vmlet.VM) -> None:
    Tables(vm).map(0x1000, 0xD000_0000 | ALL)
    walk = vm.walk(0x1000)
    assert (walk.gpa, walk.second_stage) == (0xD000_0000, None)
    assert "no memory" in str(walk)


def test_a_table_that_leads_to_itself_ends_after_four_entries(vm: vmlet.VM) -> None:
    Tables(vm).set(ROOT, ROOT | ALL)
    walk = vm.walk(0)
    assert (len(walk.steps), walk.gpa) == (4, ROOT)


def test_without_paging_an_address_is_its_own_translation(vm: vmlet.VM) -> None:
    walk = vm.walk(0x1234)
    assert (walk.levels, walk.steps, walk.gpa) == (0, (), 0x1234)


def test_a_walk_prints_as_a_table_and_goes_to_json(vm: vmlet.VM) -> None:
    Tables(vm).map(0x1000, 0x30_0000 | PRESENT)
    walk = vm.walk(0x1000)
    lines = str(walk).splitlines()
    assert lines[0] == f"linear 0x1000, 4 levels from CR3 {ROOT:#x}"
    assert [line.split()[0] for line in lines[2:]] == ["PML4E", "PDPTE", "PDE", "PTE", "page"]
    assert "r-x system" in lines[5]
    found = json.loads(walk.json())
    assert found["steps"][3]["entry"] == 0x30_0001
    assert found["second_stage"]["slot"] == 0
    fault = str(vm.walk(0x5000))
    assert fault.endswith("fault: the entry of level 1 is not present")


def test_walks_agree_with_those_of_the_engine(vm: vmlet.VM) -> None:
    """Random tables of four levels; the engine's walk (KVM_TRANSLATE) is the oracle."""
    chance = random.Random(1)
    tables = Tables(vm)
    mapped = []
    for _ in range(150):
        level = chance.choice((1, 1, 1, 2, 3))
        linear = chance.choice((0, 0xFFFF_8000_0000_0000)) | chance.getrandbits(47) & ~0xFFF
        frame = chance.randrange(0, 64 << 20, 4096) & -SIZES[level]
        flags = chance.getrandbits(3) | chance.choice((0, NO_EXECUTE))
        flags |= PRESENT if chance.random() < 0.8 else 0
        flags |= 1 << 13 if level > 1 and chance.random() < 0.1 else 0
        tables.map(linear, frame | flags | (LARGE if level > 1 else 0), level)
        mapped.append(linear)
    compared = {True: 0, False: 0}
    for linear in mapped + [chance.getrandbits(47) for _ in range(50)]:
        address = linear | chance.getrandbits(12)
        walk = vm.walk(address)
        assert walk.gpa == vm._machine.engine_translate(address, 0), str(walk)
        compared[walk.gpa is not None] += 1
    assert compared[True] > 80
    assert compared[False] > 40


def test_the_picture_of_a_walk_holds_every_entry_and_the_second_stage(vm: vmlet.VM) -> None:
    example = Path(__file__).parent.parent / "examples" / "draw_walk.py"
    draw = runpy.run_path(str(example))["draw"]
    Tables(vm).map(0x1000, 0x30_0000 | ALL)
    vm.memory.dirty()
    walk = vm.walk(0x1000)
    picture = ElementTree.fromstring(draw(walk, "a <title>"))
    words = " ".join(picture.itertext())
    assert all(f"{step.entry:#018x}" in words for step in walk.steps)
    assert words.count("dirty log") == 5
    assert "a <title>" in words
    assert "24 entries" in words
    fault = draw(vm.walk(0x2000), "a fault")
    assert "is not present" in "".join(ElementTree.fromstring(fault).itertext())


def paused_in_the_kernel(vm: vmlet.VM) -> tuple[vmlet.Regs, vmlet.Sregs]:
    """Pauses where code and stack are the kernel's.

    KVM's own walk is the supervisor's, which SMAP keeps from the pages of a program.
    """
    kernel = 1 << 63
    end = time.monotonic() + limit(30)
    while time.monotonic() < end:
        vm.pause()
        regs = vm.vcpus[0].regs
        if regs.rip >= kernel and regs.rsp >= kernel:
            return regs, vm.vcpus[0].sregs
        vm.resume()
        time.sleep(0.05)
    pytest.fail(f"the guest stays in a program at {regs.rip:#x}")


@pytest.mark.linux
def test_linux_kernel_text_is_found_as_the_engine_finds_it(make: Callable[..., vmlet.VM]) -> None:
    vm = make(kernel=kernels()["linux-6.1-cloud"], initramfs=initramfs(), memory="256M")
    vm.start()
    vm.console.expect(b"# ", timeout=limit(30))
    regs, sregs = paused_in_the_kernel(vm)
    for address in (regs.rip, regs.rsp, sregs.idt.base, sregs.gdt.base):
        walk = vm.walk(address)
        assert walk.gpa == vm._machine.engine_translate(address, 0), str(walk)
    text = vm.walk(regs.rip)
    assert text.executable
    assert text.steps[0].name == "PML4E"
