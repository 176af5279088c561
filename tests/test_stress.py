"""Four threads at running guests at once, and as many tasks; forks and collections in between.

Each operation may be refused for the state the VM is in at that moment, and for nothing else. Every
few rounds a VM is retired, mostly by `stop` and `close`, sometimes by dropping it, and the next
takes its place under the others' hands.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import vmlet
import vmlet.aio
from conftest import limit
from guests import guest

pytestmark = [pytest.mark.engines, pytest.mark.usefixtures("nothing_left")]

#: Rounds of each thread, and of all tasks together; by place, since emulated hosts are slower.
ROUNDS = {"amd": 1_000, "intel": 100}.get(os.environ.get("VMLET_LAB", ""), 10_000)
#: Rounds that a VM lives for.
LIFE = 50
THREADS = 4
FORKS = 4
COUNTER = 0x20_0000

# One works in memory, one leaves to a device at each turn, one halts for ever.
WORKS = f"1: incl {COUNTER}; jmp 1b"
LEAVES = f"1: incl {COUNTER}; mov $COM1 + 7, %dx; out %al, %dx; jmp 1b"
HALTS = f"incl {COUNTER}; 1: cli; hlt; jmp 1b"
GUESTS = (WORKS, LEAVES, HALTS)

REFUSED = (vmlet.StateError, vmlet.ClosedError)


class Clock:
    """Fails a test that hangs, with what its threads are at."""

    def __init__(self) -> None:
        self._end = time.monotonic() + limit(240)

    def tick(self) -> None:
        """Something is still going on."""
        if time.monotonic() > self._end:
            frames = sys._current_frames().values()
            pytest.fail("\n".join("".join(traceback.format_stack(frame)) for frame in frames))


def settings(code: str, number: int, engine: Any) -> dict[str, Any]:
    """What the VM of this number is made from: every other one has a second vCPU, which sleeps."""
    return {"kernel": guest(code), "memory": "4M", "cpus": 1 + number % 2, "engine": engine}


class Place:
    """Where the VM of the moment is, and what follows when its time is over."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._change = threading.Lock()
        self.made = 0
        self.code = ""
        self.vm = self._next()

    def _next(self) -> vmlet.VM:
        self.code = GUESTS[self.made % len(GUESTS)]
        self.made += 1
        vm = vmlet.VM(**settings(self.code, self.made, self._engine))
        vm.start()
        return vm

    def retire(self, old: vmlet.VM, number: int) -> None:
        """Ends `old` if it still has the place, and puts the next there."""
        with self._change:
            if self.vm is not old:
                return
            self.vm = self._next()
        if number % 4 == 0:
            return  # Whoever has it last drops it: its end comes with collection.
        old.stop()
        if number % 2 == 0:
            old.close()


def read(vm: vmlet.VM) -> None:
    """Kicks the vCPU, which tells its registers between two instructions."""
    assert vm.vcpus[0].regs.rip >= 0x10_0000


def write(vm: vmlet.VM) -> None:
    """A register is written where the guest stands still."""
    vm.vcpus[0].regs = vm.vcpus[0].regs


def look(vm: vmlet.VM) -> None:
    """What is counted, and a word of memory."""
    vm.exits()
    assert len(vm.memory[COUNTER : COUNTER + 4]) == 4


OPERATIONS: tuple[Callable[[vmlet.VM], object], ...] = (
    read,
    read,
    write,
    look,
    vmlet.VM.pause,
    vmlet.VM.resume,
    vmlet.VM.resume,
)


class Rounds:
    """Numbers of rounds, each given once."""

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self.count = count
        self.done = 0

    def part(self) -> int:
        """How many of the parts that forks stand between are over."""
        return min(self.done, self.count) * FORKS // self.count

    def __iter__(self) -> Iterator[int]:
        while True:
            with self._lock:
                number, self.done = self.done, self.done + 1
            if number >= self.count:
                return
            yield number


def work(place: Place, rounds: Rounds, errors: list[BaseException]) -> None:
    """A thread: any operation at the VM that has the place, and its end when it is time."""
    chance = random.Random()
    try:
        for number in rounds:
            vm = place.vm
            try:
                if number % LIFE == LIFE - 1:
                    place.retire(vm, number // LIFE)
                else:
                    chance.choice(OPERATIONS)(vm)
            except REFUSED:
                pass
    except BaseException as error:
        errors.append(error)


class AsyncPlace:
    """The same for tasks."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._change = asyncio.Lock()
        self.made = 0
        self.vm: vmlet.aio.VM

    async def begin(self) -> None:
        """Makes the next VM."""
        code = GUESTS[self.made % len(GUESTS)]
        self.made += 1
        vm = vmlet.aio.VM(**settings(code, self.made, self._engine))
        self.vm = await vm
        await vm.start()

    async def retire(self, old: vmlet.aio.VM, number: int) -> None:
        """Ends `old` if it still has the place; the next follows."""
        async with self._change:
            if self.vm is not old:
                return
            await self.begin()
        if number % 4:
            await old.stop()
            await old.close()

    async def end(self) -> None:
        """The last VM goes on when it is told to, and is closed."""
        while GUESTS[(self.made - 1) % len(GUESTS)] == HALTS:
            await self.retire(self.vm, 1)
        assert goes_on(self.vm.sync)
        await self.vm.close()


ASYNC: tuple[Callable[[vmlet.aio.VM], Any], ...] = (
    lambda vm: vm.pause(),
    lambda vm: vm.resume(),
    lambda vm: vm.resume(),
    lambda vm: vm.wait(0.001),
    lambda vm: vm.console.read(timeout=0.001),
    lambda vm: anext(vm.events(0.001), None),
)


async def task(place: AsyncPlace, rounds: Rounds, errors: list[BaseException]) -> None:
    """A task: any operation, a third of them cancelled somewhere on the way."""
    chance = random.Random()
    try:
        for number in rounds:
            vm = place.vm
            try:
                if number % LIFE == LIFE - 1:
                    await place.retire(vm, number // LIFE)
                    continue
                read(vm.sync)
                call = asyncio.ensure_future(_told(chance.choice(ASYNC)(vm)))
                if chance.random() < 1 / 3:
                    await asyncio.sleep(chance.choice((0, 0, 0.0005)))
                    call.cancel()
                await asyncio.wait((call,))
                if not call.cancelled():
                    call.result()
            except (*REFUSED, vmlet.TimeoutError):
                pass
    except BaseException as error:
        errors.append(error)


async def _told(call: Any) -> Any:
    return await call


def child(vm: vmlet.VM) -> int:
    """In a child process nothing of the parent's VM can be used; 0 if so."""
    try:
        vm.pause()
    except vmlet.ForkedProcessError:
        return 0
    return 1


def forks(vm: vmlet.VM) -> None:
    """A child comes and goes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of 3.12: a fork with threads
        pid = os.fork()
    if pid == 0:
        status = 2
        try:
            status = child(vm)
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def goes_on(vm: vmlet.VM) -> bool:
    """Whether a guest that counts in memory does so once it is told to run."""
    if vm.state == "paused":
        vm.resume()
    before = bytes(vm.memory[COUNTER : COUNTER + 4])
    deadline = time.monotonic() + limit(10)
    while bytes(vm.memory[COUNTER : COUNTER + 4]) == before:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def finish(place: Place, errors: list[BaseException], forked: int) -> None:
    """All rounds went well, and the next guest runs as if nothing had been."""
    if errors:
        raise errors[0]
    assert forked >= FORKS
    assert place.made > ROUNDS // LIFE // 4
    place.retire(place.vm, 2)
    while place.code == HALTS:
        place.retire(place.vm, 2)
    assert goes_on(place.vm)
    place.vm.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_threads_that_kick_pause_resume_read_and_stop_get_on(engine: Any) -> None:
    place, errors, rounds = Place(engine), list[BaseException](), Rounds(THREADS * ROUNDS)
    threads = [
        threading.Thread(target=work, args=(place, rounds, errors), daemon=True)
        for _ in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    forked, clock = 0, Clock()
    while any(thread.is_alive() for thread in threads):
        if rounds.part() >= forked:
            forks(place.vm)
            forked += 1
        gc.collect()
        clock.tick()
        time.sleep(0.05)
    finish(place, errors, forked)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_tasks_that_are_cancelled_meanwhile_get_on(engine: Any) -> None:
    place, rounds = AsyncPlace(engine), Rounds(ROUNDS)
    errors: list[BaseException] = []

    async def main() -> int:
        await place.begin()
        tasks = [asyncio.ensure_future(task(place, rounds, errors)) for _ in range(THREADS)]
        forked, clock = 0, Clock()
        while not all(one.done() for one in tasks):
            if rounds.part() >= forked:
                forks(place.vm.sync)
                forked += 1
            gc.collect()
            clock.tick()
            await asyncio.sleep(0.1)
        if errors:
            raise errors[0]
        await place.end()
        return forked

    assert asyncio.run(main()) >= FORKS
    assert place.made > ROUNDS // LIFE // 4
