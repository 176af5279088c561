"""The asyncio twin: one surface with the VM, waits that can be cancelled, loops that go."""

from __future__ import annotations

import asyncio
import gc
import inspect
import time
from collections.abc import Callable
from typing import Any

import pytest

import vmlet
import vmlet.aio
from conftest import limit
from guests import ECHOES, guest

pytestmark = [pytest.mark.engines, pytest.mark.usefixtures("nothing_left")]

SPEAKS = "putc 'h'; putc 'i'; putc 10; spin"
POWERS_OFF = "putc 'a'; putc 10; putc 'b'; putc 10; putc 'c'; poweroff; spin"


@pytest.fixture
def make(engine: Any) -> Callable[[str], vmlet.aio.VM]:
    """Gives a VM that is not made yet and runs assembly."""
    return lambda code: vmlet.aio.VM(kernel=guest(code), memory="8M", engine=engine)


def _public(kind: type) -> dict[str, Any]:
    return {name: value for name, value in vars(kind).items() if not name.startswith("_")}


@pytest.mark.parametrize(
    ("twin", "original"), [(vmlet.aio.VM, vmlet.VM), (vmlet.aio.Console, vmlet.Console)]
)
@pytest.mark.usefixtures("engine")
def test_both_have_one_surface(twin: type, original: type) -> None:
    ours, theirs = _public(twin), _public(original)
    assert set(theirs) <= set(ours)
    for name, method in theirs.items():
        if inspect.isfunction(method):
            parameters = inspect.signature(method).parameters.values()
            assert [str(p) for p in parameters] == [
                str(p) for p in inspect.signature(ours[name]).parameters.values()
            ], name


def test_a_guest_is_run_and_its_lines_and_events_come(make: Callable[[str], vmlet.aio.VM]) -> None:
    async def main() -> None:
        async with make(POWERS_OFF) as vm:
            assert vm.state == "created"
            await vm.start()
            lines = [line async for line in vm.console.lines(timeout=limit(10))]
            assert lines == ["a", "b", "c"]
            assert (await vm.wait(limit(10))).kind == "poweroff"
            kinds = [event.kind async for event in vm.events(limit(10))]
            assert kinds == ["started", "poweroff"]
        assert vm.state == "closed"

    asyncio.run(main())


def test_what_is_typed_is_answered(make: Callable[[str], vmlet.aio.VM]) -> None:
    async def main() -> None:
        async with make(ECHOES) as vm:
            await vm.start()
            for sent, answer in ((b"a", b"b"), (b"xyz", b"yz{")):
                vm.console.write(sent)
                assert (await vm.console.expect(answer, limit(10))).group() == answer

    asyncio.run(main())


def test_a_thousand_waits_of_many_vms_take_no_thread(make: Callable[[str], vmlet.aio.VM]) -> None:
    async def main() -> None:
        vms = [await make("spin") for _ in range(4)]
        for vm in vms:
            await vm.start()
        waits = [asyncio.ensure_future(vm.wait()) for vm in vms for _ in range(250)]
        await asyncio.sleep(limit(0.05))
        assert not any(wait.done() for wait in waits)
        for vm in vms:
            await vm.stop()
        ends = await asyncio.wait_for(asyncio.gather(*waits), limit(10))
        assert {event.kind for event in ends} == {"stopped"}
        for vm in vms:
            await vm.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "wait",
    [
        lambda vm: vm.wait(),
        lambda vm: vm.console.expect("never", timeout=None),
        lambda vm: vm.console.read(timeout=None),
        lambda vm: anext(vm.events()),
        lambda vm: anext(vm.console.lines()),
    ],
    ids=["wait", "expect", "read", "events", "lines"],
)
def test_a_cancelled_wait_loses_nothing(
    make: Callable[[str], vmlet.aio.VM], wait: Callable[[vmlet.aio.VM], Any]
) -> None:
    async def main() -> None:
        async with make(ECHOES) as vm:
            await vm.start()
            assert (await anext(vm.events(limit(10)))).kind == "started"
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(wait(vm), limit(0.05))
            vm.console.write("a")
            assert await vm.console.read(timeout=limit(10)) == b"b"

    asyncio.run(main())


@pytest.mark.parametrize("name", ["start", "pause", "stop", "close"])
def test_a_cancelled_call_is_carried_out(make: Callable[[str], vmlet.aio.VM], name: str) -> None:
    after = {"start": "running", "pause": "paused", "stop": "ended", "close": "closed"}[name]

    async def main() -> None:
        async with make("spin") as vm:
            if name != "start":
                await vm.start()
            task = asyncio.ensure_future(getattr(vm, name)())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            deadline = time.monotonic() + limit(10)
            while vm.state != after:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.001)

    asyncio.run(main())


def test_one_whose_making_is_cancelled_leaves_nothing(make: Callable[[str], vmlet.aio.VM]) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(make("spin").__aenter__())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_a_timeout_says_what_was_waited_for(make: Callable[[str], vmlet.aio.VM]) -> None:
    async def main() -> None:
        async with make(SPEAKS) as vm:
            await vm.start()
            with pytest.raises(vmlet.TimeoutError, match="still running"):
                await vm.wait(limit(0.05))
            with pytest.raises(vmlet.TimeoutError, match=r"never.*hi"):
                await vm.console.expect("never", limit(0.05))
            assert await vm.console.read() == b"hi\n"
            assert [event.kind async for event in _first(vm.events(limit(1)))] == ["started"]
            with pytest.raises(vmlet.TimeoutError, match="nothing happened"):
                await anext(vm.events(limit(0.05)))

    asyncio.run(main())


async def _first(events: Any) -> Any:
    async for event in events:
        yield event
        return


def test_a_wait_ends_when_the_vm_is_closed(make: Callable[[str], vmlet.aio.VM]) -> None:
    async def main() -> None:
        vm = await make("spin")
        await vm.start()
        waits = [asyncio.ensure_future(vm.wait()), asyncio.ensure_future(vm.console.expect("x"))]
        await asyncio.sleep(limit(0.02))
        await vm.close()
        for wait in waits:
            with pytest.raises((vmlet.ClosedError, vmlet.GuestError)):
                await asyncio.wait_for(wait, limit(10))

    asyncio.run(main())


def test_a_vm_outlives_its_loop_and_serves_the_next(make: Callable[[str], vmlet.aio.VM]) -> None:
    vm = make(ECHOES)
    left: list[asyncio.Future[vmlet.Event]] = []

    async def first() -> None:
        await vm
        await vm.start()
        # Left over, and cancelled by the loop's end.
        left.append(asyncio.ensure_future(vm.wait()))
        await asyncio.sleep(limit(0.02))

    async def second() -> None:
        vm.console.write("a")
        await vm.console.expect("b", limit(10))
        await vm.close()

    asyncio.run(first())
    assert left[0].cancelled()
    assert vm.state == "running"
    asyncio.run(second())


def test_a_loop_closed_over_a_wait_lets_the_vm_go(make: Callable[[str], vmlet.aio.VM]) -> None:
    loop = asyncio.new_event_loop()

    async def begin() -> vmlet.aio.VM:
        vm = await make("spin")
        await vm.start()
        return vm

    vm = loop.run_until_complete(begin())
    task = loop.create_task(vm.wait())
    loop.run_until_complete(asyncio.sleep(limit(0.02)))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    del task
    gc.collect()
    assert vm.state == "running"
    vm.sync.close()


def test_two_loops_at_once_are_refused(make: Callable[[str], vmlet.aio.VM]) -> None:
    async def main() -> None:
        async with make("spin") as vm:
            await vm.start()
            wait = asyncio.ensure_future(vm.wait())
            await asyncio.sleep(limit(0.02))

            def elsewhere() -> None:
                with pytest.raises(vmlet.StateError, match="another event loop"):
                    asyncio.run(vm.wait())

            await asyncio.to_thread(elsewhere)
            wait.cancel()

    asyncio.run(main())


@pytest.mark.usefixtures("engine")
def test_one_that_was_not_made_says_so() -> None:
    vm = vmlet.aio.VM(kernel=b"")
    assert "not made" in repr(vm)
    with pytest.raises(vmlet.StateError, match="not been made"):
        _ = vm.state
    asyncio.run(vm.close())
    with pytest.raises(vmlet.KernelError):
        asyncio.run(vm.__aenter__())
