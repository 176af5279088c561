"""The software CPU: a VM with no /dev/kvm at all, where it is asked for."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

import vmlet
from conftest import initramfs, kernels, limit
from guests import guest

pytestmark = [
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.interpreted,
]

MIB = 1 << 20
Make = Callable[..., vmlet.VM]

# 64 times the mebibyte from 1 MiB on, in one instruction each.
FLOOD = """
    mov $64, %ebx
1:  mov $0x100000, %esi
    mov $0x100000, %ecx
    mov $0x3f8, %dx
    rep outsb
    dec %ebx
    jnz 1b
    poweroff
    spin
"""


def test_debian_boots_to_a_shell_that_takes_commands_and_powers_off(make: Make) -> None:
    vm = make(
        kernel=kernels()["linux-6.1-cloud"],
        initramfs=initramfs(),
        engine="soft",
    )
    assert vm.engine == "soft"
    assert vm.cmdline == vmlet.default_cmdline("soft")
    vm.start()
    vm.console.expect("# ", timeout=limit(60))
    vm.console.write("uname -r; grep -c GenuineIntel /proc/cpuinfo; echo end-$((1+1))\n")
    answer = vm.console.expect(re.compile(rb"\n(6\.1\..*?)\r\n(\d)\r\nend-2"), timeout=limit(20))
    assert answer[2] == b"1"
    vm.console.write("poweroff -f\n")
    assert vm.wait(timeout=limit(20)).kind == "poweroff"


def test_a_flood_of_64_mib_is_bounded_and_counted(make: Make) -> None:
    vm = make(kernel=guest(FLOOD), memory="64M", console_limit="1M", engine="soft")
    assert vm.run(timeout=limit(60)).kind == "poweroff"
    assert vm.console.dropped == 63 * MIB
    assert len(vm.console.read()) == MIB


#: A descriptor table with a 32-bit task-state segment, and a far jump to it.
TASK_SWITCH = """
    lgdt pointer + 0x100000
    ljmp $16, $0
pointer:
    .word 31
    .long table + 0x100000
table:
    .quad 0, 0, 0x0000890000000067, 0
"""


def test_an_instruction_it_lacks_is_named_with_its_place_and_bytes(make: Make) -> None:
    vm = make(kernel=guest(TASK_SWITCH), memory="4M", engine="soft")
    event = vm.run(timeout=limit(5))
    assert (event.kind, event.source) == ("error", "engine")
    assert event.instruction is not None
    # `ljmp` with a 32-bit offset.
    assert event.instruction.bytes.startswith(bytes.fromhex("ea000000001000"))
    assert event.instruction.rip == vm.vcpus[0].regs.rip
    assert event.instruction.name == "jmp far, a task switch"
    assert f"{event.instruction.rip:#x} (jmp far, a task switch): ea" in event.detail
    with pytest.raises(vmlet.GuestError, match="jmp far, a task switch") as caught:
        vm.console.expect("never", timeout=limit(5))
    assert caught.value.instruction == event.instruction


def test_code_rewritten_through_a_view_is_seen_while_it_runs(make: Make) -> None:
    # The loop stores the operand of its first instruction, at label 1, next to itself.
    code = """
    jmp 1f
    .balign 16
1:  mov $0, %eax
    mov %eax, 0x200000
    jmp 1b
"""
    vm = make(kernel=guest(code), memory="4M", engine="soft")
    vm.start()
    start = vm.memory[0x100000:0x101000].index(bytes.fromhex("b800000000a3"))
    view = memoryview(vm.memory.view(0x100000, 0x1000, writable=True))
    for version in range(1, 50):
        view[start + 1] = version
        deadline = time.monotonic() + limit(5)
        while vm.memory[0x200000:0x200001] != bytes([version]):
            assert time.monotonic() < deadline, version
    view.release()
    vm.stop()


def test_a_triple_fault_ends_the_run(make: Make) -> None:
    # An interrupt table of no entries: no exception finds a handler.
    vm = make(kernel=guest("push $0; push $0; lidt (%esp); ud2"), memory="4M", engine="soft")
    assert vm.run(timeout=limit(5)).kind == "triple-fault"


def test_a_command_line_of_the_users_own_is_given_as_it_is(make: Make) -> None:
    # PVH: ebx points to the start information, whose 24th byte holds the command line's address.
    line = "mine alone"
    code = "mov 24(%ebx), %esi; 1: lodsb; test %al, %al; jz 2f; mov $COM1, %dx; out %al, %dx"
    vm = make(kernel=guest(f"{code}; jmp 1b; 2: poweroff; spin"), cmdline=line, engine="soft")
    assert vm.run(timeout=limit(5)).kind == "poweroff"
    assert vm.console.read().decode() == vm.cmdline == line
