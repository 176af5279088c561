"""Devices written in Python: registers, posted writes, interrupts, state."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

import pytest

import vmlet
from conftest import limit
from guests import guest

pytestmark = pytest.mark.engines

AT = 0xD000_0000
END = """
    mov $0xfe, %al
    out %al, $0x64
    hlt
"""
#: Writes 100 down to 1, then keeps at 0x200000 what a read gives.
COUNTS = (
    f"""
    mov ${AT:#x}, %ebx
    mov $100, %ecx
1:  mov %ecx, (%ebx)
    dec %ecx
    jnz 1b
    mov 8(%ebx), %eax
    mov %eax, 0x200000
"""
    + END
)

Make = Callable[..., vmlet.VM]


class Adder(vmlet.MmioDevice):
    """Adds up what is written, and knows every call."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**{"at": AT, "size": 0x1000, **settings})  # type: ignore[arg-type]
        self.total = 0
        self.calls: list[tuple[int, ...]] = []
        self.batches: list[vmlet.Batch] = []

    def read(self, offset: int, size: int) -> int:
        self.calls.append((offset, size))
        return self.total

    def write(self, offset: int, size: int, value: int) -> None:
        self.calls.append((offset, size, value))
        self.total += value

    def writes(self, batch: vmlet.Batch) -> None:
        self.batches.append(batch)
        super().writes(batch)


def word(vm: vmlet.VM, gpa: int) -> int:
    return int.from_bytes(vm.memory[gpa : gpa + 4], "little")


@pytest.mark.parametrize("posted", [False, True])
def test_a_device_gets_each_access_in_order(make: Make, *, posted: bool) -> None:
    adder = Adder(posted=posted)
    vm = make(kernel=guest(COUNTS), devices=[adder])
    assert vm.run(timeout=limit(20)).kind == "reset"
    expected: list[tuple[int, ...]] = [(0, 4, value) for value in range(100, 0, -1)]
    assert adder.calls == [*expected, (8, 4)]
    assert word(vm, 0x200000) == 5050
    assert vm.exits().memory_writes == {AT: 100}


def test_widths_and_offsets_reach_a_port_device(make: Make) -> None:
    calls = []

    class Ports(vmlet.PioDevice):
        def read(self, offset: int, size: int) -> int:
            return 0x4433_2211 >> 8 * offset & (1 << 8 * size) - 1

        def write(self, offset: int, size: int, value: int) -> None:
            calls.append((offset, size, value))

    code = """
    mov $0x510, %dx
    in %dx, %eax
    mov %eax, 0x200000
    inc %dx
    in %dx, %al
    out %ax, %dx
    inc %dx
    mov $0x12345678, %eax
    out %al, %dx
    mov $0x510, %dx
    out %eax, %dx
    """
    vm = make(kernel=guest(code + END), devices=[Ports(at=0x510, size=4)])
    vm.run(timeout=limit(20))
    assert word(vm, 0x200000) == 0x4433_2211
    assert calls == [(1, 2, 0x2222), (2, 1, 0x78), (0, 4, 0x1234_5678)]


def test_what_a_device_does_not_override_reads_as_ones(make: Make) -> None:
    vm = make(kernel=guest(COUNTS), devices=[vmlet.MmioDevice(at=AT, size=0x1000)])
    vm.run(timeout=limit(20))
    assert word(vm, 0x200000) == 0xFFFF_FFFF


@pytest.mark.parametrize("posted", [False, True])
def test_a_string_write_keeps_its_order(make: Make, *, posted: bool) -> None:
    class Log(vmlet.PioDevice):
        text = b""

        def write(self, offset: int, size: int, value: int) -> None:
            self.text += value.to_bytes(size, "little")

    code = """
    cld
    mov $text, %esi
    mov $0x510, %edx
    mov $11, %ecx
    rep outsb
    jmp end
text: .ascii "hello there"
end:
    """.replace("$text", "$0x100000 + text - first")
    log = Log(at=0x510, size=1, posted=posted)
    vm = make(kernel=guest(code + END), devices=[log])
    vm.run(timeout=limit(20))
    assert log.text == b"hello there"


def test_a_read_comes_after_the_writes_posted_before_it(make: Make) -> None:
    # So long that nothing else delivers them.
    adder = Adder(posted=True, delay=50)
    vm = make(kernel=guest(COUNTS), devices=[adder])
    vm.run(timeout=limit(20))
    assert word(vm, 0x200000) == 5050


def test_a_full_ring_keeps_every_write_and_their_order(make: Make) -> None:
    adder = Adder(posted=True, room=2)
    vm = make(kernel=guest(COUNTS), devices=[adder])
    vm.run(timeout=limit(20))
    assert [value for batch in adder.batches for _, _, value in batch] == [*range(100, 0, -1)]
    stats = adder.stats()
    assert (stats["writes"], stats["calls"]) == (100, 1)
    assert stats["batches"] == len(adder.batches) > 1


WRITES_AND_SPINS = f"""
    mov ${AT:#x}, %ebx
    movl $7, (%ebx)
    movb $8, 5(%ebx)
    movl $1, 0x200000
    spin
"""


def spinning(make: Make, adder: Adder) -> vmlet.VM:
    """A VM whose guest has written and spins."""
    vm = make(kernel=guest(WRITES_AND_SPINS), devices=[adder])
    vm.start()
    while word(vm, 0x200000) != 1:
        pass
    return vm


@pytest.mark.parametrize("how", ["pause", "stop", "deliver"])
def test_posted_writes_are_delivered_by(make: Make, how: str) -> None:
    adder = Adder(posted=True, delay=50)
    vm = spinning(make, adder)
    {"pause": vm.pause, "stop": vm.stop, "deliver": adder.deliver}[how]()
    assert adder.total == 15


def test_posted_writes_are_delivered_by_themselves(make: Make) -> None:
    adder = Adder(posted=True)
    spinning(make, adder)
    while adder.total != 15:
        pass


def test_a_batch_is_a_sequence(make: Make) -> None:
    adder = Adder(posted=True, delay=50)
    spinning(make, adder).pause()
    batch = [write for batch in adder.batches for write in batch]
    assert batch == [(0, 4, 7), (5, 1, 8)]
    first = adder.batches[0]
    assert first[0] == (0, 4, 7) == first[-len(first)]
    with pytest.raises(IndexError):
        first[len(first)]


def test_a_batch_is_one_array_that_outlives_the_vm(make: Make) -> None:
    numpy = pytest.importorskip("numpy")
    adder = Adder(posted=True, delay=50)
    vm = make(kernel=guest(COUNTS), devices=[adder])
    vm.run(timeout=limit(20))
    vm.close()
    arrays = [batch.array() for batch in adder.batches]
    assert all(
        numpy.shares_memory(a, b.array()) for a, b in zip(arrays, adder.batches, strict=True)
    )
    adder.batches.clear()
    gc.collect()
    whole = numpy.concatenate(arrays)
    assert whole.dtype.names == ("offset", "value", "size", "vcpu")
    assert whole["value"].tolist() == [*range(100, 0, -1)]
    assert (int(whole["size"].sum()), int(whole["vcpu"].max())) == (400, 0)
    with pytest.raises(ValueError, match="read-only"):
        arrays[0]["value"] = 0


def test_a_batch_without_numpy_is_bytes_of_a_known_format(make: Make) -> None:
    adder = Adder(posted=True, delay=50)
    spinning(make, adder).pause()
    view = memoryview(adder.batches[0])
    assert (view.itemsize, view.ndim, view.readonly) == (24, 1, True)
    assert view.format == "T{<Q:offset:<Q:value:<I:size:<I:vcpu:}"
    assert view.tobytes()[:24] == bytes([0] * 8 + [7] + [0] * 7 + [4] + [0] * 7)


#: Takes interrupts of pin 5 as vector 0x40, of trigger mode MODE (0 edge, 0x8000 level): counts
#: them at 0x200000 and acknowledges each at the device.
INTERRUPTED = """
    cli
    mov $0x180000, %esp
    lgdt 3f - first + 0x100000
    mov $handler - first + 0x100000, %eax
    mov %ax, 0x300200
    movw $0x10, 0x300202
    movw $0x8e00, 0x300204
    shr $16, %eax
    mov %ax, 0x300206
    ljmp $0x10, $2f - first + 0x100000
2:  lidt 4f - first + 0x100000
    movl $0x1ff, 0xfee000f0
    movl $0x1a, 0xfec00000
    movl $0x40 + MODE, 0xfec00010
    mov $0xd0000000, %ebx
    sti
    movl $1, (%ebx)
1:  cmpl $3, 0x200000
    je end
    pause
    jmp 1b
handler:
    incl 0x200000
    movl $2, (%ebx)
    movl $0, 0xfee000b0
    iret
.align 8
gdt: .quad 0, 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
3:  .word 31
    .long gdt - first + 0x100000
4:  .word 0x7ff
    .long 0x300000
end:
"""


@pytest.mark.linux  # A KVM that interprets supervisor code does not carry out all of this.
@pytest.mark.parametrize(("mode", "name"), [(0, "edge"), (0x8000, "level")])
def test_interrupts_of_a_device_reach_the_guest(make: Make, mode: int, name: str) -> None:
    class Source(vmlet.MmioDevice):
        left = 3

        def write(self, offset: int, size: int, value: int) -> None:
            if value == 2:
                self.left -= 1
                self.irq.set(False)
            if self.left and name == "edge":
                self.irq.pulse()
            elif self.left:
                self.irq.set(True)

    code = INTERRUPTED.replace("MODE", hex(mode)) + END
    source = Source(at=AT, size=8, irq=5)
    vm = make(kernel=guest(code), devices=[source])
    assert vm.run(timeout=limit(20)).kind == "reset"
    assert (word(vm, 0x200000), source.left) == (3, 0)


def test_a_callback_sees_its_vcpu_and_memory(make: Make) -> None:
    class Curious(vmlet.MmioDevice):
        seen = None

        def write(self, offset: int, size: int, value: int) -> None:
            assert self.vcpu == 0
            regs = self.vm.vcpus[0].regs
            self.seen = regs.rcx, regs.rbx, self.vm.state
            self.vm.memory[0x200000:0x200004] = self.vm.memory[0x200004:0x200008]

    code = f"""
    mov ${AT:#x}, %ebx
    mov $0x1234, %ecx
    movl $99, 0x200004
    mov %eax, (%ebx)
    """
    curious = Curious(at=AT, size=8)
    vm = make(kernel=guest(code + END), devices=[curious])
    vm.run(timeout=limit(20))
    assert curious.seen == (0x1234, AT, "running")
    assert word(vm, 0x200000) == 99
    assert curious.vcpu is None


def test_a_device_can_end_the_run(make: Make) -> None:
    class Last(vmlet.MmioDevice):
        calls = 0

        def write(self, offset: int, size: int, value: int) -> None:
            self.calls += 1
            self.end_run("enough")

    last = Last(at=AT, size=0x1000)
    vm = make(kernel=guest(COUNTS), devices=[last])
    event = vm.run(timeout=limit(20))
    assert (event.kind, event.source, event.detail) == ("stopped", "device", "enough")
    assert last.calls == 1


def test_a_device_moves_with_its_saved_vm(make: Make, engine: str) -> None:
    class Kept(Adder):
        def save(self) -> bytes:
            return self.total.to_bytes(8, "little")

        def restore(self, state: bytes) -> None:
            self.total = int.from_bytes(state, "little")

    kept = Kept(posted=True, delay=50)
    vm = spinning(make, kept)
    vm.pause()
    saved = vm._save()
    other = Kept()
    with vmlet.VM._restore(saved, engine=engine, devices=[other]) as again:  # type: ignore[arg-type]
        assert other.total == 15
        assert other.vm is again
    with pytest.raises(vmlet.ConfigError, match="no python at 0xd0000000"):
        vmlet.VM._restore(saved, engine=engine)  # type: ignore[arg-type]
    with pytest.raises(vmlet.ConfigError, match="Kept"):
        vmlet.VM._restore(saved, engine=engine, devices=[Adder()])  # type: ignore[arg-type]


def test_a_vm_that_ends_leaves_nothing_of_its_devices(nothing_left: None, make: Make) -> None:
    adder = Adder(posted=True)
    vm = make(kernel=guest(COUNTS), devices=[adder])
    vm.run(timeout=limit(20))
    vm.close()
    again = make(kernel=guest(COUNTS), devices=[adder])
    again.run(timeout=limit(20))
    again.close()
    assert adder.total == 2 * 5050


def test_a_forked_child_cannot_use_a_device(make: Make) -> None:
    adder = Adder(posted=True)
    vm = spinning(make, adder)
    child = os.fork()
    if child == 0:
        refused = 0
        for use in (adder.deliver, adder.end_run, lambda: adder.irq, adder.stats):
            try:
                use()
            except vmlet.ForkedProcessError:
                refused += 1
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    vm.stop()
    assert adder.total == 15
