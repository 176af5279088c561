"""The asyncio twin of `vmlet.sockets`: `vmlet.aio.VM.vsock`."""

from __future__ import annotations

import asyncio
import inspect
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Self

from vmlet import sockets
from vmlet.errors import ClosedError

__all__ = ["Server", "Sockets"]

_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_Served = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]

_log = logging.getLogger("vmlet.vsock")


class Sockets:
    """`vmlet.sockets.Sockets`, awaited."""

    def __init__(self, blocking: sockets.Sockets) -> None:
        self._blocking = blocking

    async def open_connection(self, port: int, *, timeout: float | None = None) -> _Streams:
        """A stream to the program that listens at ``port`` in the guest, as of
        `asyncio.open_connection`.
        """
        stream = self._blocking._begin(port)
        try:
            stream.setblocking(False)
            async with asyncio.timeout(timeout):
                await _greet(stream, port)
            return await asyncio.open_connection(sock=stream)
        except TimeoutError:
            stream.close()
            raise sockets.silent(port, timeout) from None
        except BaseException:
            stream.close()
            raise

    async def start_server(self, callback: _Served, port: int) -> Server:
        """Calls ``callback`` with reader and writer for each of the guest's connections to
        ``port`` of the host, as `asyncio.start_server` does.
        """
        return Server(self._blocking.listen(port), callback)


async def _greet(stream: socket.socket, port: int) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(stream, sockets.greeting(port))
    answer = b""
    while not sockets.is_answer(answer, port):
        byte = await loop.sock_recv(stream, 1)
        if not byte:
            raise sockets.refused(port)
        answer += byte


class Server:
    """Serves one port until it is closed; what is being served goes on."""

    def __init__(self, listener: sockets.Listener, callback: _Served) -> None:
        self._listener = listener
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        self._served: set[asyncio.Task[None]] = set()
        self._open = True
        listener._inbox.setblocking(False)
        self._loop.add_reader(listener.fileno(), self._take)

    @property
    def port(self) -> int:
        """The port."""
        return self._listener.port

    def is_serving(self) -> bool:
        """Whether connections are taken."""
        return self._open

    def _take(self) -> None:
        try:
            stream, _ = self._listener._take()
        except BlockingIOError:
            return
        except ClosedError:
            self.close()
            return
        task = self._loop.create_task(self._serve(stream))
        self._served.add(task)
        task.add_done_callback(self._served.discard)

    async def _serve(self, stream: socket.socket) -> None:
        try:
            reader, writer = await asyncio.open_connection(sock=stream)
        except OSError:
            stream.close()
            return
        try:
            result = self._callback(reader, writer)
            if inspect.isawaitable(result):
                await result
        except Exception:
            _log.exception("serving port %d failed", self.port)
            writer.close()

    def close(self) -> None:
        """Takes no more connections."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()

    async def wait_closed(self) -> None:
        """Waits until nothing is served any more."""
        self.close()
        if self._served:
            await asyncio.wait(self._served)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
