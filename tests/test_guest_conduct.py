"""What a guest does cannot hurt: faults, stray accesses, loops and floods end as events."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable

import pytest

import vmlet
from conftest import Engine, limit
from guests import guest

pytestmark = [pytest.mark.engines, pytest.mark.usefixtures("nothing_left")]

KIB = 1 << 10
Make = Callable[..., vmlet.VM]

# An interrupt table of no entries: the first exception finds no handler, nor does the double fault.
TRIPLE_FAULT = """
    push $0
    push $0
    lidt (%esp)
    ud2
"""
STRAY = """
    mov $0xd0000000, %ebx
    movl $0x12345678, (%ebx)
    mov (%ebx), %eax
    cmp $-1, %eax
    jne 1f
    mov $0x9999, %dx
    out %al, %dx
    in %dx, %al
    cmp $-1, %al
    jne 1f
    putc 'Y'
1:  poweroff
    spin
"""
# KVM makes an exit of every byte of a string, so that 64 MiB take ten minutes; that much is put
# through the console in its own tests (crates/machine/src/console.rs), and by the software CPU
# (test_soft.py). The lab is slower still.
FLOOD = 16 * KIB if "VMLET_LAB" in os.environ else 64 * KIB


def flood(length: int) -> bytes:
    """A guest that prints ``length`` bytes: 4 KiB of its memory again and again."""
    return guest(f"""
    mov ${length // (4 * KIB)}, %ebp
1:  mov $0x100000, %esi
    mov $4096, %ecx
    mov $COM1, %dx
    cld
    rep outsb
    dec %ebp
    jnz 1b
    poweroff
    spin
""")


def test_a_triple_fault_is_an_event_with_a_remedy(make: Make) -> None:
    vm = make(kernel=guest(TRIPLE_FAULT), memory="64M")
    event = vm.run(timeout=limit(5))
    assert (event.kind, event.vcpu, event.source) == ("triple-fault", 0, "engine")
    assert "regs" in str(event.remedy)
    assert vm.state == "ended"
    # On AMD the processor is reset by the fault, elsewhere the registers are those of it.
    assert vm.vcpus[0].sregs.idt.limit in (0, 0xFFFF)


def test_accesses_outside_memory_read_ones_and_are_counted(make: Make) -> None:
    vm = make(kernel=guest(STRAY), memory="64M")
    assert vm.run(timeout=limit(5)).kind == "poweroff"
    assert vm.console.read() == b"Y"
    memory, ports = vm.memory.unclaimed(), vm.unclaimed_ports()
    assert memory.total == 2
    assert memory.recent[0] == vmlet.Access(0xD000_0000, 4, True, 0x1234_5678)
    assert not memory.recent[1].write
    assert 0x9999 in {access.address for access in ports.recent}


def test_a_loop_is_stopped_at_once(make: Make) -> None:
    vm = make(kernel=guest("spin"), memory="64M", cpus=1)
    vm.start()
    with pytest.raises(vmlet.TimeoutError) as caught:
        vm.wait(timeout=limit(0.05))
    assert caught.value.remedy
    began = time.monotonic()
    vm.stop()
    assert time.monotonic() - began < limit(0.5)
    assert vm.wait(timeout=limit(1)) == vmlet.Event("stopped", source="user")


def test_a_flood_keeps_the_newest_and_counts_the_rest(make: Make) -> None:
    vm = make(kernel=flood(FLOOD), memory="64M", console_limit="4K")
    assert vm.run(timeout=limit(20)).kind == "poweroff"
    assert vm.console.dropped == FLOOD - 4 * KIB
    kept = vm.console.read()
    assert vm.memory[0x10_0000:0x10_1000] == kept


def test_a_reader_of_a_flood_loses_nothing_or_is_told(make: Make) -> None:
    vm = make(kernel=flood(FLOOD), memory="64M", console_limit="4K")
    vm.start()
    count = 0
    while data := vm.console.read(timeout=limit(10)):
        count += len(data)
    assert count + vm.console.dropped == FLOOD


def test_expecting_in_a_flood_is_bounded(make: Make) -> None:
    vm = make(kernel=flood(FLOOD), memory="64M", console_limit="4K")
    vm.start()
    with pytest.raises(vmlet.GuestError) as caught:
        vm.console.expect(re.compile(rb"never\x00printed"), timeout=limit(20))
    assert len(vm.console.read()) <= 4 * KIB
    assert vm.console.dropped >= FLOOD - 4 * KIB
    assert "vm.wait" in str(caught.value.remedy)


def test_an_instruction_that_the_engine_lacks_is_an_error_event(make: Make, engine: Engine) -> None:
    # KVM's interpreter lacks this one where supervisor code is interpreted; a processor has it, and
    # so has the software CPU.
    vm = make(kernel=guest("fld1; poweroff; spin"), memory="64M")
    event = vm.run(timeout=limit(5))
    if engine == "soft" or vmlet.capabilities()["runs_kernels"]:
        assert event.kind == "poweroff"
    else:
        assert (event.kind, event.source) == ("error", "engine")
        assert "d9e8" in event.detail
        assert "vmlet doctor" in str(event.remedy)


def test_a_halt_nobody_can_end_can_be_stopped(make: Make) -> None:
    vm = make(kernel=guest("cli; hlt"), memory="64M")
    vm.start()
    time.sleep(limit(0.02))
    vm.stop()
    assert vm.wait(timeout=limit(1)).kind in ("stopped", "halt")


def test_a_step_in_a_halt_ends_when_the_vm_is_closed(make: Make) -> None:
    vm = make(kernel=guest("putc '.'; sti; hlt; spin"), memory="64M")
    vm.start()
    vm.console.expect(".", timeout=limit(10))
    time.sleep(limit(0.1))
    vm.pause()
    closer = threading.Timer(0.3, vm.close)
    closer.start()
    with pytest.raises(vmlet.Error, match=r"made way|closed"):
        vm.vcpus[0].step()
    closer.join()


def test_every_way_to_end_is_told_apart(make: Make) -> None:
    reset = make(kernel=guest("mov $6, %al; mov $0xcf9, %dx; out %al, %dx; spin"))
    event = reset.run(timeout=limit(5))
    assert (event.kind, event.source) == ("reset", "cf9")
    panic = make(kernel=guest("mov $1, %al; mov $0x505, %dx; out %al, %dx; spin"))
    event = panic.run(timeout=limit(5))
    assert (event.kind, event.source) == ("panic", "pvpanic")
    assert event.remedy


def test_many_vms_run_side_by_side_in_threads(engine: Engine) -> None:
    image, failures = guest("putc 'a'; putc 10; poweroff; spin"), []

    def live(number: int) -> None:
        try:
            with vmlet.VM(kernel=image, memory="4M", engine=engine, name=f"vm{number}") as vm:
                assert vm.run(timeout=limit(20)).kind == "poweroff"
                assert vm.console.read() == b"a\n"
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=live, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_exits_are_counted_by_port_and_page(make: Make) -> None:
    code = """
        mov $5, %ecx
    1:  putc 'x'
        mov $0xd0000010, %ebx
        movl $1, (%ebx)
        mov 0x10(%ebx), %eax
        loop 1b
        poweroff
        spin
    """
    vm = make(kernel=guest(code), memory="64M")
    assert vm.exits().total == 0
    vm.run(timeout=limit(10))
    exits = vm.exits()
    assert exits.port_writes[0x3F8] == 5
    assert (exits.memory_writes[0xD0000000], exits.memory_reads[0xD0000000]) == (5, 5)
    assert exits == vm.vcpus[0].exits()
    assert "0xd0000000" in str(exits)


def test_exits_of_a_guest_that_touches_every_port_stay_few_and_complete(make: Make) -> None:
    code = """
        mov $0x9000, %edx
    1:  in %dx, %al
        inc %edx
        cmp $0xa000, %edx
        jne 1b
        poweroff
        spin
    """
    vm = make(kernel=guest(code), memory="64M")
    vm.run(timeout=limit(20))
    exits = vm.exits()
    # The power-off is one more.
    assert exits.total == 0x1001
    assert len(exits.port_reads) <= 512
