"""Runs commands: with a log, a time limit and an end that reaches every child."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from .paths import REPOSITORY

TIMED_OUT = 124
Words = Sequence[str | Path]


class CommandError(Exception):
    """A command that had to succeed failed."""


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


def _wait(
    words: list[str], sink: IO[bytes], timeout: float, env: Mapping[str, str], cwd: Path
) -> int:
    try:
        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
    except OSError as error:
        sink.write(f"{words[0]}: {error.strerror}\n".encode())
        return 127
    try:
        return child.wait(timeout)
    except subprocess.TimeoutExpired:
        sink.write(f"ended after {timeout:g} s: it took too long\n".encode())
        return TIMED_OUT
    finally:
        if child.poll() is None:
            _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a child and what it started; the lab needs a moment to remove its files."""
    os.killpg(child.pid, signal.SIGTERM)
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


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
