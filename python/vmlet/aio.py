"""The asyncio twin: the same VM, whose waits do not block the event loop.

>>> import asyncio
>>> import vmlet.aio
>>> async def main() -> None:
...     async with vmlet.aio.VM(kernel="vmlinuz", initramfs="initrd.cpio") as vm:
...         await vm.start()
...         await vm.console.expect("login:", timeout=10)
...         async for event in vm.events():
...             print(event.kind)
>>> asyncio.run(main())  # doctest: +SKIP

`VM` and `Console` have the names of `vmlet.VM` and `vmlet.Console`. What can wait is awaited; what
answers at once (``state``, ``memory``, ``vcpus``, ``walk``, ``stats``, ``exits``) is the same
object or the same call. No thread waits for a guest: the core writes to an eventfd, once for all
that happened since somebody last looked.

A wait that is cancelled loses nothing. A call that changes the VM (``start``, ``pause``,
``resume``, ``stop``, ``close``) is carried out even so. One loop at a time can wait for a VM, and
after it another: `asyncio.run` may be called twice.
"""

from __future__ import annotations

import asyncio
import builtins
import re
import threading
from collections.abc import AsyncIterator, Callable, Generator
from os import PathLike
from types import TracebackType
from typing import Any, Self, TypeVar

import vmlet
import vmlet.balloon
from vmlet._core import Machine
from vmlet.aio_sockets import Sockets
from vmlet.devices import Device, Model
from vmlet.errors import StateError, TimeoutError
from vmlet.events import Event, event_of
from vmlet.exits import Exits
from vmlet.inspection import Walk
from vmlet.memory import Memory
from vmlet.plugged import PluggedDevice
from vmlet.regions import Unclaimed
from vmlet.vcpu import Vcpu

_T = TypeVar("_T")


class _Call:
    """A call on a thread, carried out even if nobody waits for it any more."""

    def __init__(self, call: Callable[[], Any], undo: Callable[[Any], object] | None) -> None:
        self._call = call
        self._undo = undo
        self._turn = threading.Lock()
        self._abandoned = False
        self._done: tuple[Any] | None = None

    def work(self) -> Any:
        result = self._call()
        with self._turn:
            self._done = (result,)
            abandoned = self._abandoned
        if abandoned:
            self._take_back(result)
        return result

    def abandon(self) -> None:
        with self._turn:
            self._abandoned = True
            done = self._done
        if done is not None:
            self._take_back(*done)

    def _take_back(self, result: Any) -> None:
        if self._undo is not None:
            self._undo(result)


async def _finish(call: Callable[[], _T], undo: Callable[[_T], object] | None = None) -> _T:
    """The result of ``call``, made on a thread. When cancelled it goes on, and ``undo`` gets it."""
    work = _Call(call, undo)
    task = asyncio.get_running_loop().run_in_executor(None, work.work)
    # An error that nobody waits for is not reported as lost.
    task.add_done_callback(lambda task: task.cancelled() or task.exception())
    try:
        result: _T = await asyncio.shield(task)
    except asyncio.CancelledError:
        work.abandon()
        raise
    return result


class _Waits:
    """Waits for whatever rings the VM's bell, on one event loop at a time."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: set[asyncio.Future[None]] = set()

    async def until(self, ready: Callable[[], _T | None], timeout: float | None) -> _T | None:
        """What ``ready`` answers once it is not None; None after ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while True:
                    self._machine.arm_bell()
                    found = ready()
                    if found is not None:
                        return found
                    await self._ring()
        except builtins.TimeoutError:
            return ready()

    async def _ring(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop) and not self._is_left():
            raise StateError(
                "another event loop waits for this VM", remedy="Wait for it in one loop at a time."
            )
        if self._loop is not loop:
            self._waiting.clear()
            self._loop = loop
        rung: asyncio.Future[None] = loop.create_future()
        if not self._waiting:
            loop.add_reader(self._machine.bell(), self._wake)
        self._waiting.add(rung)
        try:
            await rung
        finally:
            self._leave(loop, rung)

    def _is_left(self) -> bool:
        """Nobody waits in the loop known, or it was closed over who did."""
        return self._loop is None or self._loop.is_closed() or not self._waiting

    def _leave(self, loop: asyncio.AbstractEventLoop, rung: asyncio.Future[None]) -> None:
        self._waiting.discard(rung)
        if not self._waiting and self._loop is loop and not loop.is_closed():
            loop.remove_reader(self._machine.bell())

    def _wake(self) -> None:
        # Whoever is woken arms the bell again, which silences the descriptor.
        self._machine.arm_bell()
        for rung in self._waiting:
            if not rung.done():
                rung.set_result(None)


class Console:
    """`vmlet.Console`, awaited."""

    def __init__(self, console: vmlet.Console, waits: _Waits) -> None:
        self._console = console
        self._waits = waits

    @property
    def dropped(self) -> int:
        """Bytes lost because nobody read them in time."""
        return self._console.dropped

    def write(self, data: bytes | str) -> int:
        """Types ``data``; how many bytes were taken (all, unless the guest reads nothing)."""
        return self._console.write(data)

    async def read(self, limit: int | None = None, timeout: float | None = 0) -> bytes:
        """What came since the last read; waits up to ``timeout`` seconds for the first byte."""
        return await self._waits.until(lambda: self._some(limit), timeout) or b""

    async def expect(
        self, pattern: str | bytes | re.Pattern[bytes], timeout: float | None = 10
    ) -> re.Match[bytes]:
        """Waits until ``pattern`` is printed; consumes everything up to its end.

        Raises `TimeoutError` after ``timeout`` seconds, `GuestError` when the guest's run ends
        first. Then, and when it is cancelled, nothing is consumed.
        """
        search = self._console._expecting(pattern)
        more = next(search)

        def look() -> re.Match[bytes] | None:
            nonlocal more
            while isinstance(more, str):
                data = self._console._receive(None, 0)
                if not data and not self._is_drained():
                    return None
                more = search.send(data)
            return more

        found = await self._waits.until(look, timeout)
        if found is None:
            raise self._console._not_printed(str(more), timeout)
        return found

    async def lines(self, timeout: float | None = None) -> AsyncIterator[str]:
        """Lines as they come, until the guest's run ends; each may take ``timeout`` seconds."""
        while True:
            line = self._console._line()
            if line is not None:
                yield line
                continue
            data = await self._waits.until(self._more, timeout)
            if data is None:
                raise TimeoutError(f"no line was printed within {timeout} s")
            if not data:
                for rest in self._console._last_line():
                    yield rest
                return
            self._console._keep(data)

    def __aiter__(self) -> AsyncIterator[str]:
        return self.lines()

    def _is_drained(self) -> bool:
        return self._console._port.console_is_drained()

    def _some(self, limit: int | None) -> bytes | None:
        data = self._console.read(limit, 0)
        return data if data or self._is_drained() else None

    def _more(self) -> bytes | None:
        data = self._console._port.console_read(None, 0)
        return data if data or self._is_drained() else None


class Terminal(Console):
    """`vmlet.Terminal`, awaited."""

    def __init__(self, console: vmlet.Terminal, waits: _Waits) -> None:
        super().__init__(console, waits)
        self._window = console

    def resize(self, columns: int, rows: int) -> None:
        """Tells the guest how large the window is; zeros: not known."""
        self._window.resize(columns, rows)


class Ballooning:
    """`vmlet.VM.balloon`, awaited."""

    def __init__(self, balloon: vmlet.balloon.Ballooning) -> None:
        #: Its figures, which need no waiting, and its target, which can be set.
        self.sync = balloon

    async def statistics(self, timeout: float | None = 10) -> dict[str, int]:
        """The guest's own figures, see `vmlet.balloon.Ballooning.statistics`."""
        return await _finish(lambda: self.sync.statistics(timeout))


class VM:
    """`vmlet.VM`, awaited.

    The arguments are those of `vmlet.VM`. The VM is made when it is entered or awaited:
    ``async with vmlet.aio.VM(...) as vm`` or ``vm = await vmlet.aio.VM(...)``.
    """

    def __init__(self, **arguments: Any) -> None:
        self._make: Callable[[], vmlet.VM] = lambda: vmlet.VM(**arguments)
        self._vm: vmlet.VM | None = None

    def __await__(self) -> Generator[Any, None, Self]:
        return self._open().__await__()

    async def _open(self) -> Self:
        if self._vm is not None:
            raise StateError("this VM has been made", remedy="Make another one.")
        self._vm = await _finish(self._make, undo=vmlet.VM.close)
        self._waits = _Waits(self._vm._machine)
        #: The guest's console.
        self.console = Console(self._vm.console, self._waits)
        return self

    @property
    def sync(self) -> vmlet.VM:
        """The VM itself, whose waits block."""
        if self._vm is None:
            raise StateError("this VM has not been made", remedy="Enter it or await it first.")
        return self._vm

    @property
    def name(self) -> str:
        """Shown in messages."""
        return self.sync.name

    @property
    def cmdline(self) -> str:
        """The kernel's command line."""
        return self.sync.cmdline

    @property
    def engine(self) -> str:
        """The name of the engine that runs it."""
        return self.sync.engine

    @property
    def state(self) -> str:
        """ "created", "running", "paused", "ended" or "closed"."""
        return self.sync.state

    @property
    def memory(self) -> Memory:
        """Guest memory."""
        return self.sync.memory

    @property
    def vcpus(self) -> tuple[Vcpu, ...]:
        """The vCPUs."""
        return self.sync.vcpus

    @property
    def terminal(self) -> Terminal:
        """What the guest prints and reads on /dev/hvc0; needs a `vmlet.VirtioConsole`."""
        return Terminal(self.sync.terminal, self._waits)

    @property
    def balloon(self) -> Ballooning:
        """The memory that the guest gives back; needs a `vmlet.Balloon`."""
        return Ballooning(self.sync.balloon)

    @property
    def vsock(self) -> Sockets:
        """Streams between the guest and this process; needs a `vmlet.Vsock`."""
        return Sockets(self.sync.vsock)

    @property
    def devices(self) -> dict[int, PluggedDevice]:
        """The devices in PCIe root ports: port and name."""
        return self.sync.devices

    async def attach(self, device: Device | Model, *, port: int | None = None) -> int:
        """See `vmlet.VM.attach`."""
        return await _finish(lambda: self.sync.attach(device, port=port))

    async def detach(self, port: int, *, timeout: float | None = 30, pull: bool = False) -> None:
        """See `vmlet.VM.detach`."""
        await _finish(lambda: self.sync.detach(port, timeout=timeout, pull=pull))

    def translate(self, address: int, vcpu: int = 0) -> int:
        """As `vmlet.VM.translate`."""
        return self.sync.translate(address, vcpu)

    def walk(self, address: int, vcpu: int = 0) -> Walk:
        """As `vmlet.VM.walk`."""
        return self.sync.walk(address, vcpu)

    def stats(self) -> dict[str, int | tuple[int, ...]]:
        """As `vmlet.VM.stats`."""
        return self.sync.stats()

    def exits(self) -> Exits:
        """As `vmlet.VM.exits`."""
        return self.sync.exits()

    def unclaimed_ports(self) -> Unclaimed:
        """As `vmlet.VM.unclaimed_ports`."""
        return self.sync.unclaimed_ports()

    async def start(self) -> None:
        """Runs guest code."""
        await _finish(self.sync.start)

    async def pause(self) -> None:
        """Stops guest code between two instructions, on every vCPU."""
        await _finish(self.sync.pause)

    async def resume(self) -> None:
        """Runs guest code again after `pause`."""
        await _finish(self.sync.resume)

    async def stop(self) -> None:
        """Ends the run."""
        await _finish(self.sync.stop)

    async def wait(self, timeout: float | None = None) -> Event:
        """The event that ended the run; `TimeoutError` after ``timeout`` seconds (None: never)."""
        machine = self.sync._machine
        found = await self._waits.until(lambda: machine.wait(0), timeout)
        if found is None:
            raise self.sync._still_runs(timeout)
        return event_of(*found)

    async def run(self, timeout: float | None = None) -> Event:
        """`start`, then `wait`."""
        await self.start()
        return await self.wait(timeout)

    @property
    def instructions(self) -> int:
        """As `vmlet.VM.instructions`."""
        return self.sync.instructions

    async def run_for(self, *, instructions: int, timeout: float | None = None) -> Event | None:
        """As `vmlet.VM.run_for`."""
        vm = self.sync
        await _finish(lambda: vm._begin_run_for(instructions))
        stands = await self._waits.until(lambda: vm._machine.end_run_for(0) or None, timeout)
        if not stands:
            raise vm._still_counts(timeout)
        return vm._early_end()

    async def record(self, path: str | PathLike[str]) -> None:
        """As `vmlet.VM.record`."""
        await _finish(lambda: self.sync.record(path))

    @classmethod
    def replay(cls, path: str | PathLike[str], **settings: Any) -> Self:
        """As `vmlet.VM.replay`; the VM is made when it is entered or awaited."""
        vm = cls(**settings)
        vm._make = lambda: vmlet.VM.replay(path, **settings)
        return vm

    async def state_hash(self) -> str:
        """As `vmlet.VM.state_hash`."""
        return await _finish(self.sync.state_hash)

    async def events(self, timeout: float | None = None) -> AsyncIterator[Event]:
        """Events as they come, until the run has ended; each may take ``timeout`` seconds."""
        vm = self.sync
        while True:
            found = await self._waits.until(self._next_event, timeout)
            if found is None:
                raise vm._silent(timeout)
            if not found:
                return
            yield event_of(*found)

    def _next_event(self) -> tuple[Any, ...] | None:
        """An event, nothing yet (None), or the end (empty)."""
        found = self.sync._machine.next_event(0)
        if found is not None:
            return found
        return () if self.state in ("ended", "closed") else None

    async def close(self, *, wait: bool = False, timeout: float | None = None) -> None:
        """Ends everything. Closing twice, or what was never made, does nothing."""
        if (vm := self._vm) is not None:
            await _finish(lambda: vm.close(wait=wait, timeout=timeout))

    async def __aenter__(self) -> Self:
        return await self._open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._vm is not None:
            await _finish(lambda: vmlet.VM.__exit__(self.sync, kind, value, traceback))

    def __repr__(self) -> str:
        if self._vm is None:
            return "<vmlet.aio.VM that was not made>"
        return repr(self._vm).replace("vmlet.VM", "vmlet.aio.VM", 1)
