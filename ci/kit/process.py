"""Runs commands: with a log, a time limit and an end that reaches every child."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from .paths import REPOSITORY

TIMED_OUT = 124
_PATIENCE = 10.0  # seconds for an end that was asked for
Words = Sequence[str | Path]


class CommandError(Exception):
    """A command that had to succeed failed."""


class _Spent(threading.local):
    seconds: float = 0.0


_spent = _Spent()


class _Alive:
    """What runs now, whichever thread waits for it."""

    def __init__(self) -> None:
        self.change = threading.Condition()
        self.children: set[subprocess.Popen[bytes]] = set()
        self.ending = False


_alive = _Alive()


def spent() -> float:
    """Processor seconds of the commands that this thread has run, their children's included."""
    return _spent.seconds


def progress(text: str) -> None:
    """Say on stderr what takes long."""
    print(text, file=sys.stderr, flush=True)


def run(
    command: Words,
    log: Path,
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: Path = REPOSITORY,
) -> int:
    """Append the command and its output to `log`; return its status, 124 after `timeout` s."""
    words = [str(word) for word in command]
    with log.open("ab") as sink:
        sink.write(f"$ {shlex.join(words)}\n".encode())
        sink.flush()
        return _wait(words, sink, timeout, {**os.environ, **(env or {})}, cwd)


def output(
    command: Words,
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    stderr: IO[bytes] | int | None = None,
) -> tuple[int, str]:
    """Run a command; return its status, 124 after `timeout` s, and what it printed.

    What it printed on stderr goes where `stderr` says, as in `subprocess`; `None` is here.
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryFile() as sink:
        status = _wait(words, sink, timeout, {**os.environ, **(env or {})}, REPOSITORY, stderr)
        sink.seek(0)
        return status, sink.read().decode(errors="replace")


def _wait(
    words: list[str],
    sink: IO[bytes],
    timeout: float,
    env: Mapping[str, str],
    cwd: Path,
    stderr: IO[bytes] | int | None = subprocess.STDOUT,
) -> int:
    try:
        child = _started(words, sink, env, cwd, stderr)
    except OSError as error:
        sink.write(f"{words[0]}: {error.strerror}\n".encode())
        return 127
    try:
        if _ends(child, timeout):
            return child.returncode
        sink.write(f"ended after {timeout:g} s: it took too long\n".encode())
        return TIMED_OUT
    finally:
        if child.returncode is None:
            _end(child)
        with _alive.change:
            _alive.children.discard(child)
            _alive.change.notify_all()


def _started(
    words: list[str],
    sink: IO[bytes],
    env: Mapping[str, str],
    cwd: Path,
    stderr: IO[bytes] | int | None,
) -> subprocess.Popen[bytes]:
    with _alive.change:
        if _alive.ending:
            raise CommandError("it was interrupted")
        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=stderr,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
        _alive.children.add(child)
    return child


def end_all() -> None:
    """End what other threads still wait for, which no signal of the terminal reaches; no more
    commands are run."""
    with _alive.change:
        _alive.ending = True
        for number in (signal.SIGTERM, signal.SIGKILL):
            for child in _alive.children:
                if child.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child.pid, number)
            if _alive.change.wait_for(lambda: not _alive.children, _PATIENCE):
                return


def _ends(child: subprocess.Popen[bytes], timeout: float) -> bool:
    """Wait for a child's end and count what it spent; False when `timeout` s have passed."""
    descriptor = os.pidfd_open(child.pid)
    try:
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        if not waiting.poll(timeout * 1000):
            return False
    finally:
        os.close(descriptor)
    # `Popen.wait` does not tell what the child used.
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    _spent.seconds += used.ru_utime + used.ru_stime
    return True


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a child and what it started; the lab needs a moment to remove its files."""
    os.killpg(child.pid, signal.SIGTERM)
    if not _ends(child, _PATIENCE):
        os.killpg(child.pid, signal.SIGKILL)
        _ends(child, 60)


def must(command: Words, what: str, log: Path, *, timeout: float = 1800) -> None:
    """Run a command that has to succeed; show the end of its log if it does not."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    status = run(command, log, timeout=timeout)
    if status:
        raise CommandError(f"{what} failed with status {status}:\n{tail(log)}")


def tail(log: Path, lines: int = 40) -> str:
    """The last lines of a log."""
    if not log.exists():
        return ""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
