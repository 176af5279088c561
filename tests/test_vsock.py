"""Sockets: programs of Debian's kernels talk to this process, both ways."""

from __future__ import annotations

import asyncio
import functools
import random
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import vmlet
import vmlet.aio
from conftest import Engine, Holdings, Shared, default_engine, initramfs, kernels, limit, short
from guests import program
from vmlet.aio_sockets import Sockets

pytestmark = pytest.mark.linux

Make = Callable[..., vmlet.VM]

KERNEL = "linux-6.12-cloud"
MODULES = ("virtio_pci", "vmw_vsock_virtio_transport")
LENGTH = 10 << 20


@functools.cache
def root() -> bytes:
    """A shell with the program."""
    shell = initramfs(modules=MODULES, kernel=KERNEL)
    return shell + vmlet.build_initramfs(files={"bin/vsock": program("vsock")})


def booted(make: Make, device: vmlet.Vsock | None = None, engine: Engine | None = None) -> vmlet.VM:
    """A guest whose shell has the program."""
    engine = engine or default_engine()
    vm = make(
        kernel=kernels()[KERNEL],
        initramfs=root(),
        cmdline=short(vmlet.default_cmdline(engine)),
        devices=[device or vmlet.Vsock()],
        engine=engine,
    )
    vm.start()
    vm.console.expect("# ", timeout=limit(60))
    return vm


@pytest.fixture
def vm(request: pytest.FixtureRequest, shared: Shared) -> vmlet.VM:
    """One that the tests share which leave it as it was."""
    named = "engine" in request.fixturenames
    engine = request.getfixturevalue("engine") if named else default_engine()
    return shared(engine, lambda: booted(vmlet.VM, engine=engine))


def echoing(vm: vmlet.VM, port: int = 7) -> None:
    """Has the guest echo what comes to ``port``."""
    vm.console.write(f"vsock echo {port} &\n")
    vm.console.expect("listening", timeout=limit(30))


def echo(stream: socket.socket) -> None:
    """Echoes until the end."""
    with stream:
        while piece := stream.recv(1 << 16):
            stream.sendall(piece)


# The first, so that no guest that others share has descriptors of its own.
def test_streams_end_when_the_vm_closes_and_say_so_to_selectors(make: Make) -> None:
    vmlet._core.drain()
    before = Holdings.now()
    vm = booted(make)
    echoing(vm)
    stream, listener = vm.vsock.connect(7, timeout=limit(10)), vm.vsock.listen(60)
    with stream, listener, selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        selector.register(listener, selectors.EVENT_READ)
        assert not selector.select(0)
        vm.close()
        ready: set[int] = set()
        deadline = time.monotonic() + limit(10)
        while len(ready) < 2 and time.monotonic() < deadline:
            ready |= {key.fd for key, _ in selector.select(0.1)}
        assert stream.recv(1) == b""
        with pytest.raises(vmlet.ClosedError):
            listener.accept(timeout=limit(1))
    with pytest.raises(vmlet.ClosedError):
        vm.vsock.connect(7)
    vm.close(wait=True)
    while (after := Holdings.now()).threads != before.threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (after.descriptors, after.threads) == (before.descriptors, before.threads)


@pytest.mark.engines
def test_a_guest_talks_to_this_process_and_closes_one_half_first(
    vm: vmlet.VM, engine: Engine
) -> None:
    with vm.vsock.listen(52) as listener:
        vm.console.write(f"vsock send 52 {LENGTH}\n")
        stream, port = listener.accept(timeout=limit(30))
        assert port > 1023
        echo(stream)
        vm.console.expect(f"{LENGTH} bytes, 0 wrong", timeout=limit(60))


@pytest.mark.engines
def test_this_process_talks_to_a_guest_while_the_vm_pauses_and_resumes(
    vm: vmlet.VM, engine: Engine
) -> None:
    echoing(vm)
    sent, got = random.Random(7).randbytes(LENGTH), bytearray()
    with vm.vsock.connect(7, timeout=limit(10)) as stream:

        def send() -> None:
            stream.sendall(sent)
            stream.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        while piece := stream.recv(1 << 16):
            if len(got) >> 21 != (len(got) + len(piece)) >> 21:
                vm.pause()
                vm.resume()
            got += piece
        sender.join()
    assert got == sent


@pytest.mark.engines
def test_an_asyncio_server_serves_many_connections_of_a_guest_across_a_pause(
    vm: vmlet.VM, engine: Engine
) -> None:
    served = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        served += 1
        if served == 50:
            vm.pause()
            await asyncio.sleep(0.05)
            vm.resume()
        writer.write(await reader.readexactly(4))
        await writer.drain()
        assert await reader.read() == b""
        writer.close()

    async def main() -> None:
        sockets = Sockets(vm.vsock)
        async with await sockets.start_server(serve, 53):
            vm.console.write("vsock many 53 100\n")
            said = functools.partial(vm.console.expect, "100 right", timeout=limit(60))
            await asyncio.get_running_loop().run_in_executor(None, said)

    asyncio.run(main())
    assert served == 100


@pytest.mark.engines
def test_asyncio_streams_to_a_guest_run_at_once_across_a_pause(
    vm: vmlet.VM, engine: Engine
) -> None:
    echoing(vm, 8)

    async def talk(sockets: Sockets, number: int) -> bool:
        reader, writer = await sockets.open_connection(8, timeout=limit(30))
        half = bytes([number]) * 50_000
        writer.write(half)
        got = await reader.readexactly(len(half))
        if number == 0:
            vm.pause()
        writer.write(half)
        writer.write_eof()
        if number == 0:
            await asyncio.sleep(0.05)
            vm.resume()
        got += await reader.read(-1)
        writer.close()
        await writer.wait_closed()
        return bytes(got) == half + half

    async def main() -> list[bool]:
        sockets = Sockets(vm.vsock)
        return await asyncio.gather(*(talk(sockets, number) for number in range(32)))

    assert all(asyncio.run(main()))


def test_host_programs_use_unix_sockets(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "vm"
    vm = booted(make, vmlet.Vsock(cid=77, path=path))
    echoing(vm)
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(limit(30))
        stream.connect(str(path))
        stream.sendall(b"CONNECT 7\n")
        assert re.fullmatch(rb"OK \d+\n", stream.recv(32))
        stream.sendall(b"hello")
        assert stream.recv(16) == b"hello"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{path}_54")
        server.listen()
        vm.console.write("vsock send 54 1000\n")
        echo(server.accept()[0])
        vm.console.expect("1000 bytes, 0 wrong", timeout=limit(30))
    with pytest.raises(vmlet.ConfigError, match="exists"):
        vmlet.VM(kernel=kernels()[KERNEL], devices=[vmlet.Vsock(path=path)])
    vm.close()
    assert not path.exists()


def test_a_guest_without_a_driver_refuses_and_the_asyncio_twin_says_so(make: Make) -> None:
    async def main() -> None:
        files = {"kernel": kernels()[KERNEL], "engine": "soft"}
        async with vmlet.aio.VM(devices=[vmlet.Vsock()], **files) as vm:
            with pytest.raises(vmlet.RefusedError):
                await vm.vsock.open_connection(7, timeout=limit(10))
            async with await vm.vsock.start_server(lambda *_: None, 8) as server:
                assert server.is_serving()
            assert not server.is_serving()

    asyncio.run(main())


def test_ports_without_a_listener_refuse_both_ways(vm: vmlet.VM) -> None:
    with pytest.raises(vmlet.RefusedError, match="refuses port 9") as caught:
        vm.vsock.connect(9, timeout=limit(10))
    assert isinstance(caught.value, ConnectionRefusedError)
    vm.console.write("vsock send 9 1\n")
    vm.console.expect("connect: Connection reset by peer", timeout=limit(30))
    with vm.vsock.listen(9), pytest.raises(vmlet.StateError, match="port 9"):
        vm.vsock.listen(9)
    with vm.vsock.listen(9) as again, pytest.raises(vmlet.TimeoutError):
        again.accept(timeout=0.01)
    vm.pause()
    with pytest.raises(vmlet.TimeoutError, match="has not answered"):
        vm.vsock.connect(9, timeout=0.1)
    vm.resume()


@pytest.mark.parametrize("cid", [0, 1, 2, 0xFFFFFFFF, -1, True, "3"])
def test_context_ids_that_no_guest_can_have_are_refused(cid: int) -> None:
    with pytest.raises(vmlet.ConfigError, match="cid"):
        vmlet.Vsock(cid=cid)


def test_a_vm_without_the_device_says_how_to_have_it(make: Make) -> None:
    vm = make(kernel=kernels()[KERNEL])
    with pytest.raises(vmlet.ConfigError, match=r"vmlet\.Vsock"):
        vm.vsock.connect(7)
    with pytest.raises(vmlet.ConfigError, match="second"):
        make(kernel=kernels()[KERNEL], devices=[vmlet.Vsock(), vmlet.Vsock()])
