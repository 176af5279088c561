"""Joins a running guest's console with this process' input and output."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from dataclasses import dataclass
from typing import TextIO

from vmlet.cli.machine import Event, Machine
from vmlet.cli.terminal import HELP, HINT, EscapeParser, is_ours, raw
from vmlet.errors import Error

_CHUNK = 4096
_BURST = 1 << 16
_POLL = 0.2
# Between two tries to write to a guest whose input is full, in seconds.
_RETRY = 0.005
# How long the threads may take to end once the machine is stopped, in seconds.
_PATIENCE = 2.0
_REGISTERS = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags"),
)


@dataclass(slots=True)
class Streams:
    """Where the console goes: descriptors (input None: none), and a stream for our own words."""

    input: int | None
    output: int
    messages: TextIO


class Session:
    """One run of a machine with its console attached."""

    def __init__(self, machine: Machine, streams: Streams, timeout: float | None) -> None:
        self._machine = machine
        self._streams = streams
        self._timeout = timeout
        self._event: Event | None = None
        self._failure: BaseException | None = None
        self._ended = threading.Event()
        self._escape: EscapeParser | None = None
        self._at_line_start = True
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    @property
    def at_line_start(self) -> bool:
        """Whether the guest's output so far ends with a line."""
        return self._at_line_start

    def run(self) -> Event:
        """Starts the machine, stays until its run ends, and gives what ended it.

        The builtin TimeoutError says that the time has passed, BrokenPipeError that nobody reads
        the output. In each case the machine is stopped.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._close_pipe)
            # A signal may meet a thread other than the one that waits for input and runs handlers.
            fd = signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
            stack.callback(signal.set_wakeup_fd, fd)
            source = self._streams.input
            if source is not None and os.isatty(source):
                stack.enter_context(raw(source))
                self._escape = EscapeParser()
                self._say(HINT)
            self._machine.start()
            waiter = threading.Thread(target=self._await_end, daemon=True)
            printer = threading.Thread(target=self._copy_output, daemon=True)
            waiter.start()
            printer.start()
            patience: float | None = _PATIENCE
            try:
                self._copy_input()
                # A reader of our output may be as slow as it likes.
                patience = None
            finally:
                self._machine.stop()
                waiter.join(_PATIENCE)
                printer.join(patience if self._ended.is_set() else _PATIENCE)
        if self._failure is not None:
            raise self._failure
        if self._event is None:
            raise Error("the machine does not stop")
        return self._event

    def _close_pipe(self) -> None:
        writer, self._wake_writer = self._wake_writer, -1
        os.close(writer)
        os.close(self._wake_reader)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._wake_writer, b"!")

    def _await_end(self) -> None:
        try:
            self._event = self._machine.wait(timeout=self._timeout)
        except BaseException as error:
            self._failure = error
        self._ended.set()
        self._wake()

    def _copy_output(self) -> None:
        """Copies until the machine has ended and all it printed is out."""
        try:
            while True:
                ended = self._ended.is_set()
                data = self._machine.console.read(_BURST, timeout=0 if ended else _POLL)
                if data:
                    self._at_line_start = data.endswith(b"\n")
                    _write_all(self._streams.output, data)
                elif ended:
                    return
        except BaseException as error:
            self._failure = self._failure or error
            self._ended.set()
            self._wake()

    def _copy_input(self) -> None:
        """Copies until the machine has ended, or the user quits."""
        sources: list[int] = [self._wake_reader]
        if self._streams.input is not None:
            sources.append(self._streams.input)
        while not self._ended.is_set():
            ready, _, _ = select.select(sources, [], [])
            if self._wake_reader in ready:
                os.read(self._wake_reader, _CHUNK)
            if self._streams.input not in ready or self._streams.input is None:
                continue
            data = _read(self._streams.input)
            if not data:
                sources.remove(self._streams.input)
            elif not self._take(data):
                return

    def _take(self, data: bytes) -> bool:
        """Gives input to the guest or obeys it; False: the user quits."""
        if self._escape is None:
            self._write_patiently(data)
            return True
        for part in self._escape.feed(data):
            if isinstance(part, bytes):
                # What a guest that reads nothing cannot take is lost, as on any full line: the
                # escape must work.
                self._machine.console.write(part)
            elif part == "q":
                return False
            else:
                try:
                    self._obey(part)
                except Error as error:
                    self._say(str(error))
        return True

    def _write_patiently(self, data: bytes) -> None:
        """Gives all of it to the guest, as fast as that reads."""
        while data and not self._ended.is_set():
            taken = self._machine.console.write(data)
            data = data[taken:]
            if data and not taken:
                self._ended.wait(_RETRY)

    def _obey(self, command: str) -> None:
        if command == "p":
            if self._machine.state == "paused":
                self._machine.resume()
                self._say("resumed")
            else:
                self._machine.pause()
                self._say("paused; Ctrl-] p resumes")
        elif command == "r":
            self._show_registers()
        elif command == "?":
            self._say(HELP)
        else:
            self._say(f"no command {command!r}. {HELP}")

    def _show_registers(self) -> None:
        paused = self._machine.state == "paused"
        if not paused:
            self._machine.pause()
        try:
            for number, vcpu in enumerate(self._machine.vcpus):
                regs = vcpu.regs
                values = [f"{name:>6} {getattr(regs, name):016x}" for name in _REGISTERS]
                lines = ["  ".join(values[at : at + 3]) for at in range(0, len(values), 3)]
                self._say("\n".join([f"vCPU {number}", *lines]))
        finally:
            if not paused:
                self._machine.resume()

    def _say(self, text: str) -> None:
        """Prints on a terminal that may be raw."""
        self._streams.messages.write("".join(f"\r[vmlet] {line}\r\n" for line in text.splitlines()))
        self._streams.messages.flush()


def own_streams(*, use_input: bool) -> Streams:
    """This process' own; no input where its terminal belongs to another."""
    source: int | None = None
    if use_input and sys.stdin is not None:
        source = sys.stdin.fileno()
        if os.isatty(source) and not is_ours(source):
            source = None
    return Streams(source, sys.stdout.fileno(), sys.stderr)


def _read(source: int) -> bytes:
    try:
        return os.read(source, _CHUNK)
    except OSError:
        # A terminal that hung up.
        return b""


def _write_all(target: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(target, view) :]
        except BlockingIOError:
            select.select([], [target], [])
