"""Streams between a guest and this process: `vmlet.VM.vsock`."""

from __future__ import annotations

import builtins
import errno
import os
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

from vmlet._core import connect_vsock, listen_vsock
from vmlet.errors import ClosedError, ConfigError, RefusedError, TimeoutError

if TYPE_CHECKING:
    from vmlet._core import Machine

__all__ = ["Listener", "Sockets"]

#: Bytes of ``OK 4294967295`` and a newline, and a few more.
_LONGEST = 32


class Sockets:
    """The streams of a VM that has a `vmlet.Vsock`.

    A stream's end here is an ordinary `socket.socket`: it works with selectors, asyncio and files.
    It reads the end when the guest closes it, resets, or the VM is closed.

    >>> with vm.vsock.listen(1024) as listener:  # doctest: +SKIP
    ...     stream, (cid, port) = listener.accept(timeout=10)
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def connect(self, port: int, *, timeout: float | None = None) -> socket.socket:
        """A stream to the program that listens at ``port`` in the guest.

        Raises:
            RefusedError: nobody does, or the guest's driver is not there yet.
            TimeoutError: the guest has not answered, for instance because it is paused.
        """
        stream = self._begin(port)
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            stream.sendall(greeting(port))
            answer = b""
            while not is_answer(answer, port):
                if deadline is not None:
                    stream.settimeout(max(deadline - time.monotonic(), 1e-6))
                answer += _byte(stream.recv(1), port)
            stream.settimeout(None)
        except builtins.TimeoutError:
            stream.close()
            raise silent(port, timeout) from None
        except BaseException:
            stream.close()
            raise
        return stream

    def _begin(self, port: int) -> socket.socket:
        _check(port)
        return socket.socket(fileno=connect_vsock(self._machine))

    def listen(self, port: int) -> Listener:
        """Takes the guest's connections to ``port`` of the host (context id 2)."""
        _check(port)
        return Listener(socket.socket(fileno=listen_vsock(self._machine, port)), port)

    def __repr__(self) -> str:
        return f"<vmlet.sockets.Sockets of {self._machine!r}>"


class Listener:
    """Takes a guest's connections to one port, until it is closed.

    It is readable (`selectors`) while a connection waits. Some hundred may wait; the guest's next
    ones are refused.
    """

    def __init__(self, inbox: socket.socket, port: int) -> None:
        self._inbox = inbox
        #: The port.
        self.port = port

    def accept(self, timeout: float | None = None) -> tuple[socket.socket, int]:
        """The next connection, and the guest's port.

        Raises:
            TimeoutError: none came.
            ClosedError: the VM, or the listener, is closed.
        """
        try:
            self._inbox.settimeout(timeout)
            return self._take()
        except (builtins.TimeoutError, BlockingIOError):
            raise TimeoutError(f"nobody connected to port {self.port} in {timeout} s") from None

    def _take(self) -> tuple[socket.socket, int]:
        try:
            port, descriptors, _, _ = socket.recv_fds(self._inbox, 4, 1)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            port, descriptors = b"", []
        if not descriptors:
            raise ClosedError(f"port {self.port} takes no more connections")
        os.set_inheritable(descriptors[0], False)
        return socket.socket(fileno=descriptors[0]), int.from_bytes(port, "little")

    def __iter__(self) -> Iterator[tuple[socket.socket, int]]:
        """Connections, until the VM or the listener is closed."""
        while True:
            try:
                yield self.accept()
            except ClosedError:
                return

    def fileno(self) -> int:
        """For `selectors`."""
        return self._inbox.fileno()

    def close(self) -> None:
        """Takes no more; those that wait are ended."""
        self._inbox.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<vmlet.sockets.Listener at port {self.port}>"


def greeting(port: int) -> bytes:
    """What a stream to the guest begins with."""
    return f"CONNECT {port}\n".encode()


def is_answer(answer: bytes, port: int) -> bool:
    """Whether the guest's answer is whole."""
    if len(answer) > _LONGEST:
        raise refused(port)
    return answer.endswith(b"\n")


def _byte(byte: bytes, port: int) -> bytes:
    if not byte:
        raise refused(port)
    return byte


def refused(port: int) -> RefusedError:
    """The guest does not take a connection."""
    return RefusedError(
        f"the guest refuses port {port}",
        remedy="Have a program listen there (AF_VSOCK) with the guest's vsock driver loaded.",
    )


def silent(port: int, timeout: float | None) -> TimeoutError:
    """The guest does not answer."""
    return TimeoutError(
        f"the guest has not answered at port {port} in {timeout} s",
        remedy="Check that it runs.",
    )


def _check(port: int) -> None:
    whole = isinstance(port, int) and not isinstance(port, bool)
    if not whole or not 0 <= port < 0xFFFFFFFF:
        raise ConfigError(f"port cannot be {port!r}", remedy="Give 0 to 4294967294.")
