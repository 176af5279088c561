"""Use after close, from two threads at once, and views that outlive their VM."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import warnings
from collections.abc import Callable

import pytest

import vmlet
from conftest import Engine, lacks, limit
from guests import guest

try:
    import numpy
except ImportError:  # a lab that is emulated slowly has no room for it
    numpy = None  # type: ignore[assignment]

pytestmark = [pytest.mark.engines, pytest.mark.usefixtures("nothing_left")]

Make = Callable[..., vmlet.VM]

#: Every call of the public face that needs an open VM.
CALLS: dict[str, Callable[[vmlet.VM], object]] = {
    "start": lambda vm: vm.start(),
    "pause": lambda vm: vm.pause(),
    "resume": lambda vm: vm.resume(),
    "stop": lambda vm: vm.stop(),
    "wait": lambda vm: vm.wait(timeout=1),
    "run": lambda vm: vm.run(timeout=1),
    "translate": lambda vm: vm.translate(0),
    "unclaimed_ports": lambda vm: vm.unclaimed_ports(),
    "memory read": lambda vm: vm.memory[0:16],
    "memory write": lambda vm: vm.memory.__setitem__(slice(0, 1), b"x"),
    "memory view": lambda vm: vm.memory.view(0, 16),
    "memory regions": lambda vm: vm.memory.regions(),
    "memory dirty": lambda vm: vm.memory.dirty(),
    "memory unclaimed": lambda vm: vm.memory.unclaimed(),
    "console read": lambda vm: vm.console.read(),
    "console write": lambda vm: vm.console.write("x"),
    "console expect": lambda vm: vm.console.expect("x", timeout=1),
    "regs": lambda vm: vm.vcpus[0].regs,
    "sregs": lambda vm: vm.vcpus[0].sregs,
    "set regs": lambda vm: setattr(vm.vcpus[0], "regs", vmlet.Regs()),
    "step": lambda vm: vm.vcpus[0].step(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_use_after_close_is_refused(make: Make, call: Callable[[vmlet.VM], object]) -> None:
    vm = make(kernel=guest("spin"), memory="64M")
    vm.close()
    assert vm.state == "closed"
    with pytest.raises(vmlet.ClosedError) as caught:
        call(vm)
    assert caught.value.remedy


def test_closing_twice_does_nothing(make: Make) -> None:
    vm = make(kernel=guest("spin"), memory="64M")
    vm.start()
    vm.close()
    vm.close()
    assert list(vm.events()) == [vmlet.Event("started", source="user")]
    assert "closed" in repr(vm)


def test_output_and_outcome_can_be_asked_for_after_close(make: Make) -> None:
    vm = make(kernel=guest("putc 'o'; putc 'k'; poweroff; spin"), memory="64M")
    vm.run(timeout=limit(5))
    vm.close()
    assert vm.console.read() == b"ok"
    assert vm.wait().kind == "poweroff"
    with pytest.raises(vmlet.ClosedError):
        vm.console.read()


def test_waiting_ends_when_another_thread_closes(make: Make) -> None:
    vm = make(kernel=guest("spin"), memory="64M")
    vm.start()
    threading.Timer(0.05, vm.close).start()
    with pytest.raises(vmlet.ClosedError):
        vm.wait(timeout=limit(20))


def test_reading_lines_ends_when_another_thread_closes(make: Make) -> None:
    vm = make(kernel=guest("putc 'a'; putc 10; putc 'b'; spin"), memory="64M")
    vm.start()
    threading.Timer(limit(0.2), vm.close).start()
    assert list(vm.console.lines(timeout=limit(20))) == ["a", "b"]


@pytest.mark.parametrize(
    ("call", "needed"),
    [("pause", "running"), ("resume", "paused")],
)
def test_a_call_in_the_wrong_state_names_the_right_one(make: Make, call: str, needed: str) -> None:
    vm = make(kernel=guest("spin"), memory="64M")
    with pytest.raises(vmlet.StateError, match=needed) as caught:
        getattr(vm, call)()
    assert caught.value.remedy
    vm.start()
    with pytest.raises(vmlet.StateError):
        vm.start()
    with pytest.raises(vmlet.StateError, match="setting registers"):
        vm.vcpus[0].regs = vmlet.Regs()


def test_threads_that_start_pause_and_resume_take_turns(make: Make) -> None:
    vm = make(kernel=guest("1: incl 0x200000; jmp 1b"), memory="64M", cpus=2)
    vm.start()
    unexpected: list[BaseException] = []

    def juggle() -> None:
        for _ in range(30):
            for call in (vm.pause, vm.resume):
                try:
                    call()
                except vmlet.StateError:
                    pass  # The other thread was first.
                except BaseException as error:
                    unexpected.append(error)

    threads = [threading.Thread(target=juggle) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not unexpected
    if vm.state == "running":
        vm.pause()
    before = vm.memory[0x200000:0x200004]
    assert vm.memory[0x200000:0x200004] == before
    vm.resume()
    assert vm.state == "running"


def test_threads_that_close_at_once_all_return(make: Make) -> None:
    for _ in range(5):
        vm = make(kernel=guest("spin"), memory="4M")
        vm.start()
        threads = [threading.Thread(target=vm.close) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(limit(5))
            assert not thread.is_alive()


def test_a_view_outlives_its_vm(engine: Engine) -> None:
    vm = vmlet.VM(kernel=guest("spin"), memory="64M", engine=engine)
    vm.memory[0x30_0000:0x30_0004] = b"abcd"
    view = memoryview(vm.memory.view(0x30_0000, 4096))
    vm.close()
    del vm
    gc.collect()
    vmlet._core.drain()
    assert bytes(view[:4]) == b"abcd"
    view.release()


def test_a_view_is_read_only_unless_asked_for(make: Make) -> None:
    vm = make(kernel=guest("spin"), memory="64M")
    plain, writable = vm.memory.view(0, 64), vm.memory.view(0, 64, writable=True)
    assert (plain.writable, writable.writable, len(plain)) == (False, True, 64)
    with pytest.raises(TypeError):
        memoryview(plain)[0] = 1
    memoryview(writable)[:2] = b"hi"
    assert vm.memory[0:2] == b"hi"


def test_numpy_shares_the_guests_memory_without_a_copy(make: Make) -> None:
    if numpy is None:
        lacks("numpy", "it is not installed")
    vm = make(kernel=guest("spin"), memory="64M")
    array = numpy.frombuffer(
        memoryview(vm.memory.view(0x20_0000, 1 << 20, writable=True)), dtype="<u4"
    )
    array[3] = 0x0102_0304
    assert vm.memory[0x20_000C:0x20_0010] == bytes([4, 3, 2, 1])
    vm.memory[0x20_0000:0x20_0004] = b"\xff\0\0\0"
    assert array[0] == 255
    assert array.sum() == 255 + 0x0102_0304
    kept = array[:4]
    vm.close()
    assert kept[3] == 0x0102_0304


@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        (64 << 20, 4096),
        ((64 << 20) - 4096, 8192),
        (0xD000_0000, 16),
        (1 << 63, 1),
        (-1, 1),
        (0, -1),
    ],
)
def test_a_view_outside_memory_is_refused(make: Make, gpa: int, length: int) -> None:
    vm = make(kernel=guest("spin"), memory="64M")
    with pytest.raises(vmlet.ConfigError) as caught:
        vm.memory.view(gpa, length)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("first", "end"),
    [(64 << 20, (64 << 20) + 1), (0, 1 << 40), (0, 1 << 80), (-4, 4), (8, 4), (0, (64 << 20) + 1)],
)
def test_reading_outside_memory_is_refused(make: Make, first: int, end: int) -> None:
    vm = make(kernel=guest("spin"), memory="64M")
    with pytest.raises(vmlet.ConfigError) as caught:
        vm.memory[first:end]
    assert caught.value.remedy


def test_memory_is_indexed_by_ranges_only(make: Make) -> None:
    vm = make(kernel=guest("spin"), memory="64M")
    assert len(vm.memory) == 64 << 20
    for where in (5, slice(0, 4, 2), slice(None, 4), slice(0, None), slice("a", "b")):
        with pytest.raises(TypeError):
            vm.memory[where]  # type: ignore[index]
    with pytest.raises(vmlet.ConfigError, match="do not fit"):
        vm.memory[0:4] = b"12345"
    vm.memory[0:4] = bytearray(b"1234")
    assert vm.memory[0:4] == b"1234"


def test_a_vm_cannot_be_pickled_or_copied(make: Make) -> None:
    vm = make(kernel=guest("spin"), memory="64M")
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        for what in (vm, vm._machine):
            with pytest.raises(TypeError, match="cannot be pickled"):
                attempt(what)


def test_one_left_open_warns_and_is_closed(engine: Engine) -> None:
    for run in (False, True):
        image = guest("poweroff; spin")
        vm = vmlet.VM(kernel=image, memory="64M", engine=engine, name="forgotten")
        if run:
            vm.run(timeout=limit(5))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del vm
            gc.collect()
        assert [warning.category for warning in caught] == [ResourceWarning]
        assert "forgotten" in str(caught[0].message)


def test_a_closed_one_does_not_warn(engine: Engine) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with vmlet.VM(kernel=guest("spin"), memory="64M", engine=engine) as vm:
            vm.start()
        del vm
        gc.collect()
