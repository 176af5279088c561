"""Counted runs: two are the same, one stops at any instruction, a record replays to its end."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import vmlet
import vmlet.aio
from conftest import limit
from guests import guest

pytestmark = [
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.interpreted,
]

Make = Callable[..., vmlet.VM]

COUNT = "1: incl 0x200000; addl $7, 0x200004; push %eax; pop %ebx; jmp 1b"

# Prints the real-time clock's seconds and hours, and the time-stamp counter, and powers off.
TIMES = """
    xor %ecx, %ecx
1:  mov $0, %al
    out %al, $0x70
    in $0x71, %al
    mov $COM1, %dx
    out %al, %dx
    rdtsc
    mov $COM1, %dx
    out %al, %dx
    inc %ecx
    cmp $20000, %ecx
    jne 1b
    poweroff
    spin
"""

# Repeats what is typed, one byte more, until "q"; counts how often it looked at 0x200000.
ECHO = """
1:  incl 0x200000
    mov $COM1 + 5, %dx
    in %dx, %al
    test $1, %al
    jz 1b
    mov $COM1, %dx
    in %dx, %al
    cmp $'q', %al
    je 2f
    inc %al
    out %al, %dx
    jmp 1b
2:  poweroff
    spin
"""


def counted(make: Make, code: str, **settings: object) -> vmlet.VM:
    return make(**{"kernel": guest(code), "memory": "4M", "clock": "icount", **settings})


def ending(vm: vmlet.VM) -> tuple[str, int, str, bytes]:
    """How the run of ``vm`` ended, and everything that tells it from another."""
    event = vm.wait(timeout=limit(120))
    return event.kind, vm.instructions, vm.state_hash(), vm.console.read()


def test_a_run_stops_at_exactly_the_instruction(make: Make) -> None:
    pieces = (1, 2, 3, 5, 63, 64, 65, 1000, 16_384, 50_000)
    vm = counted(make, COUNT)
    done = 0
    for count in pieces:
        assert vm.run_for(instructions=count, timeout=limit(10)) is None
        done += count
        assert (vm.instructions, vm.state) == (done, "paused")
        # One at first, then five a round, of which the first adds one.
        assert int.from_bytes(vm.memory[0x20_0000:0x20_0004], "little") == (done + 3) // 5
    whole = counted(make, COUNT)
    whole.run_for(instructions=done, timeout=limit(10))
    assert whole.state_hash() == vm.state_hash()


def test_a_run_that_ends_before_gives_its_event(make: Make) -> None:
    vm = counted(make, "nop; nop; poweroff; spin")
    assert vm.run_for(instructions=0) is None
    assert vm.state == "created"
    event = vm.run_for(instructions=1000, timeout=limit(10))
    assert event is not None
    assert (event.kind, vm.state) == ("poweroff", "ended")
    with pytest.raises(vmlet.StateError):
        vm.run_for(instructions=1)


def test_a_run_that_waits_for_input_can_time_out_and_go_on(make: Make) -> None:
    vm = counted(make, "cli; hlt; spin")
    with pytest.raises(vmlet.TimeoutError) as caught:
        vm.run_for(instructions=100, timeout=0.1)
    assert "pause" in str(caught.value.remedy)
    vm.pause()
    assert vm.instructions < 100


def test_clocks_follow_the_guest(make: Make) -> None:
    runs = []
    for _ in range(2):
        vm = counted(make, TIMES)
        assert vm.run(timeout=limit(20)).kind == "poweroff"
        runs.append(vm.console.read())
    assert runs[0] == runs[1]
    assert len(set(runs[0][1::2])) > 2


def test_a_record_with_typed_input_replays_to_the_same_state(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    vm = counted(make, ECHO)
    vm.record(path)
    vm.start()
    said = b""
    for word in (b"abc", b"x" * 40, b"hello"):
        assert vm.console.write(word) == len(word)
        answer = bytes(byte + 1 for byte in word)
        said += vm.console.expect(answer, timeout=limit(10)).string
    vm.console.write(b"q")
    kind, count, state, rest = ending(vm)
    vm.close()
    assert kind == "poweroff"
    again = vmlet.VM.replay(path, kernel=guest(ECHO), memory="4M", engine="soft")
    with again:
        again.start()
        assert ending(again) == (kind, count, state, said + rest)


def test_a_replay_ends_where_the_record_was_stopped(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    vm = counted(make, ECHO)
    vm.record(path)
    vm.run_for(instructions=12_345, timeout=limit(10))
    vm.console.write("a")
    vm.resume()
    vm.console.expect("b", timeout=limit(10))
    vm.stop()
    count, state = vm.instructions, vm.state_hash()
    with vmlet.VM.replay(path, kernel=guest(ECHO), memory="4M") as again:
        event = again.run(timeout=limit(20))
        assert (event.kind, event.source) == ("stopped", "record")
        assert (again.instructions, again.state_hash()) == (count, state)
        assert again.console.read() == b"b"


@pytest.fixture
def recorded(make: Make, tmp_path: Path) -> Path:
    """A record of a short run of `ECHO`."""
    path = tmp_path / "run.rec"
    vm = counted(make, ECHO)
    vm.record(path)
    vm.console.write("aq")
    assert vm.run(timeout=limit(10)).kind == "poweroff"
    vm.close()
    return path


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"kernel": guest(COUNT)}, "kernel"),
        ({"initramfs": b"x" * 512}, "initramfs"),
        ({"memory": "8M"}, "memory"),
        ({"cpus": 2}, "cpus"),
        ({"cmdline": "quiet"}, "cmdline"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_record_of_something_else_is_refused_by_name(
    recorded: Path, changed: dict[str, object], name: str
) -> None:
    settings = {"kernel": guest(ECHO), "memory": "4M", "engine": "soft", **changed}
    with pytest.raises(vmlet.ConfigError, match=f"another {name}") as caught:
        vmlet.VM.replay(recorded, **settings)
    assert caught.value.remedy


def test_a_damaged_record_is_refused_with_the_offset(recorded: Path) -> None:
    whole = recorded.read_bytes()
    damaged = {
        "truncated": (whole[:-3], len(whole) - 3, "ends too early"),
        "flipped": (whole[:-1] + bytes([whole[-1] ^ 1]), None, "sum of an entry"),
        "foreign": (b"#!/bin/sh\n" * 9, 0, "does not begin"),
        "empty": (b"", 0, "ends too early"),
        "version": (whole[:8] + b"\x09" + whole[9:], 8, "version"),
    }
    for data, offset, said in damaged.values():
        recorded.write_bytes(data)
        with pytest.raises(vmlet.ConfigError, match=said) as caught:
            vmlet.VM.replay(recorded, kernel=guest(ECHO), memory="4M")
        assert offset is None or f"byte {offset}:" in caught.value.message


def test_a_file_that_cannot_be_had_is_a_host_error(make: Make, tmp_path: Path) -> None:
    vm = counted(make, ECHO)
    with pytest.raises(vmlet.HostError) as caught:
        vm.record(tmp_path)
    assert caught.value.errno == 21
    with pytest.raises(vmlet.HostError) as caught:
        vmlet.VM.replay(tmp_path / "nothing", kernel=guest(ECHO), memory="4M")
    assert caught.value.errno == 2


def test_what_a_record_does_not_hold_is_refused_meanwhile(make: Make, tmp_path: Path) -> None:
    vm = counted(make, ECHO)
    vm.record(tmp_path / "run.rec")
    for change in (
        lambda: vm.memory.__setitem__(slice(0, 1), b"x"),
        lambda: vm.memory.view(0, 16, writable=True),
        lambda: setattr(vm.vcpus[0], "regs", vmlet.Regs()),
        lambda: vm.vcpus[0].step(),
        lambda: vm.record(tmp_path / "other.rec"),
    ):
        with pytest.raises(vmlet.StateError):
            change()
    vm.start()
    vm.close()
    again = vmlet.VM.replay(tmp_path / "run.rec", kernel=guest(ECHO), memory="4M")
    with again, pytest.raises(vmlet.StateError, match="record alone"):
        again.console.write("x")


def test_a_vm_that_runs_can_no_longer_be_recorded(make: Make, tmp_path: Path) -> None:
    vm = counted(make, ECHO)
    vm.start()
    with pytest.raises(vmlet.StateError):
        vm.record(tmp_path / "run.rec")


def test_a_clock_of_the_host_counts_nothing(make: Make, tmp_path: Path) -> None:
    vm = make(kernel=guest("spin"), memory="4M", engine="soft")
    for call in (
        lambda: vm.instructions,
        lambda: vm.run_for(instructions=1),
        lambda: vm.record(tmp_path / "run.rec"),
    ):
        with pytest.raises(vmlet.UnsupportedError, match="counts instructions"):
            call()


def test_kvm_counts_no_instructions(make: Make) -> None:
    with pytest.raises(vmlet.UnsupportedError, match="icount") as caught:
        make(kernel=guest("spin"), engine="kvm", clock="icount")
    assert "soft" in str(caught.value.remedy)


def test_auto_takes_the_engine_that_counts() -> None:
    with vmlet.VM(kernel=guest("spin"), memory="4M", clock="icount") as vm:
        assert vm.engine == "soft"


@pytest.mark.parametrize("instructions", [-1, 1.5, "9", True, None])
def test_a_number_of_instructions_that_cannot_be_is_refused(
    make: Make, instructions: object
) -> None:
    with pytest.raises(vmlet.ConfigError, match="instructions"):
        counted(make, "spin").run_for(instructions=instructions)  # type: ignore[arg-type]


def test_a_full_disk_ends_the_run_with_an_error(make: Make) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    vm = counted(make, ECHO)
    with pytest.raises(vmlet.HostError) as caught:
        vm.record(full)
    assert caught.value.errno == 28


def test_typing_from_another_thread_enters_once(make: Make, tmp_path: Path) -> None:
    vm = counted(make, ECHO)
    vm.record(tmp_path / "run.rec")
    vm.start()
    threads = [threading.Thread(target=vm.console.write, args=("a" * 50,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    vm.console.expect("b" * 200, timeout=limit(20))
    vm.console.write("q")
    kind, count, state, _ = ending(vm)
    copy = tmp_path / "copy.rec"
    shutil.copy(tmp_path / "run.rec", copy)
    with vmlet.VM.replay(copy, kernel=guest(ECHO), memory="4M") as again:
        again.start()
        assert ending(again)[:3] == (kind, count, state)


def test_a_counted_run_is_awaited_recorded_and_replayed(tmp_path: Path) -> None:
    path, settings = tmp_path / "run.rec", {"kernel": guest("spin"), "memory": "4M"}

    async def first() -> tuple[int, str]:
        async with vmlet.aio.VM(clock="icount", **settings) as vm:
            await vm.record(path)
            assert await vm.run_for(instructions=1234, timeout=limit(10)) is None
            assert vm.state == "paused"
            return vm.instructions, await vm.state_hash()

    async def again() -> tuple[int, str]:
        async with vmlet.aio.VM.replay(path, **settings) as vm:
            assert (await vm.run(timeout=limit(10))).source == "record"
            return vm.instructions, await vm.state_hash()

    assert asyncio.run(first()) == asyncio.run(again())
