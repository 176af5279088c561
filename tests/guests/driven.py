"""A guest that makes the accesses it is told to, and counts its interrupts."""

from __future__ import annotations

import time

import vmlet
from conftest import limit
from guests import guest

#: Number of the request, write or read, address, value, number of the last request that is done.
_BOX = 0x300000
#: Interrupts of two vectors, what the device said they were for, and where its registers are.
_LINE, _MESSAGES, _CAUSES, _REGISTERS = 0x300040, 0x300044, 0x300048, 0x30004C
#: Vectors of the line and of messages.
LINE, MESSAGES = 0x40, 0x41
_LAPIC, _IOAPIC = 0xFEE00000, 0xFEC00000

#: Its handlers ask the device `edu` what for, and acknowledge that.
_CODE = f"""
.set BOX, {_BOX}
.macro gate vector, handler
    mov $\\handler - first + 0x100000, %eax
    mov %ax, 0x310000 + \\vector * 8
    movw $0x10, 0x310002 + \\vector * 8
    movw $0x8e00, 0x310004 + \\vector * 8
    shr $16, %eax
    mov %ax, 0x310006 + \\vector * 8
.endm
.macro handler count
    push %eax
    push %ebx
    mov {_REGISTERS}, %ebx
    mov 0x24(%ebx), %eax
    or %eax, {_CAUSES}
    mov %eax, 0x64(%ebx)
    incl \\count
    movl $0, {_LAPIC + 0xB0}
    pop %ebx
    pop %eax
    iret
.endm
    cli
    mov $0x180000, %esp
    lgdt 5f - first + 0x100000
    gate {LINE}, line
    gate {MESSAGES}, messages
    ljmp $0x10, $2f - first + 0x100000
2:  lidt 6f - first + 0x100000
    movl $0x1ff, {_LAPIC + 0xF0}
    sti
1:  pause
    mov BOX, %eax
    cmp BOX + 16, %eax
    je 1b
    mov BOX + 8, %ebx
    cmpl $0, BOX + 4
    jne 3f
    mov (%ebx), %ecx
    mov %ecx, BOX + 12
    jmp 4f
3:  mov BOX + 12, %ecx
    mov %ecx, (%ebx)
4:  mov %eax, BOX + 16
    jmp 1b
line: handler {_LINE}
messages: handler {_MESSAGES}
.align 8
gdt: .quad 0, 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
5:  .word 31
    .long gdt - first + 0x100000
6:  .word 0x7ff
    .long 0x310000
"""

IMAGE = guest(_CODE)


class Driven:
    """A VM with that guest in it, which runs."""

    def __init__(self, vm: vmlet.VM) -> None:
        self.vm = vm
        self._number = 0

    def _word(self, address: int) -> int:
        return int.from_bytes(self.vm.memory[address : address + 4], "little")

    def _put(self, address: int, value: int) -> None:
        self.vm.memory[address : address + 4] = value.to_bytes(4, "little")

    def _ask(self, write: int, address: int, value: int = 0) -> int:
        self._number += 1
        for number, word in enumerate((write, address, value), 1):
            self._put(_BOX + 4 * number, word)
        self._put(_BOX, self._number)
        deadline = time.monotonic() + limit(10)
        while self._word(_BOX + 16) != self._number:
            assert time.monotonic() < deadline, "the guest does not answer"
            time.sleep(0.001)
        return self._word(_BOX + 12)

    def read(self, address: int) -> int:
        """Four bytes that the guest finds there."""
        return self._ask(0, address)

    def write(self, address: int, value: int) -> None:
        """Has the guest write four bytes there."""
        self._ask(1, address, value)

    def serve(self, registers: int) -> None:
        """Tells its interrupt handlers where the device's registers are."""
        self._put(_REGISTERS, registers)

    def set_pin(self, pin: int) -> None:
        """Has a pin of the I/O APIC, level-triggered, come as the vector of lines."""
        for register, value in ((0x11 + 2 * pin, 0), (0x10 + 2 * pin, 0x8000 | LINE)):
            self.write(_IOAPIC, register)
            self.write(_IOAPIC + 0x10, value)

    @property
    def interrupts(self) -> tuple[int, int, int]:
        """Interrupts by the line, by messages, and what for."""
        return self._word(_LINE), self._word(_MESSAGES), self._word(_CAUSES)

    def wait(self, lines: int, messages: int) -> int:
        """Waits until so many have come; what for."""
        deadline = time.monotonic() + limit(5)
        while self.interrupts[:2] != (lines, messages):
            assert time.monotonic() < deadline, f"interrupts: {self.interrupts}"
            time.sleep(0.005)
        return self.interrupts[2]
