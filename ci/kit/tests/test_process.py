"""Commands end with their status, their output and, at the latest, at their limit."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kit import process


def test_a_command_is_logged_with_its_output_and_status(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert process.run(["sh", "-c", "echo out; echo err >&2; exit 3"], log, timeout=20) == 3
    assert log.read_text().splitlines() == [
        "$ sh -c 'echo out; echo err >&2; exit 3'",
        "out",
        "err",
    ]


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    log = tmp_path / "log"
    begin = time.monotonic()
    status = process.run(["sh", "-c", "sleep 100 & echo $!; wait"], log, timeout=0.5)
    assert status == process.TIMED_OUT
    assert time.monotonic() - begin < 30
    number = log.read_text().splitlines()[1]
    assert _ended(number)
    assert "it took too long" in log.read_text()


_RUNS_IN_A_THREAD = """
import pathlib, signal, sys, threading, types
# Who started the tests in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv[1])
from kit import commands, process

def work(_):
    words = ["sh", "-c", "sleep 100 & echo $! >$0/child; wait", sys.argv[2]]
    log = pathlib.Path(sys.argv[2], "log")
    run = lambda: process.run(words, log, timeout=90)
    threading.Thread(target=run, daemon=True).start()
    threading.Event().wait()

sys.modules["kit.suite"] = types.SimpleNamespace(main=work)
sys.exit(commands.main(["test"]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_another_thread_waits_for_ends_with_an_interrupted_run(
    tmp_path: Path, number: signal.Signals
) -> None:
    ci = Path(__file__).resolve().parents[2]
    told = tmp_path / "child"
    words = [sys.executable, "-c", _RUNS_IN_A_THREAD, str(ci), str(tmp_path)]
    with subprocess.Popen(words) as run:
        try:
            while not (told.exists() and told.read_text().endswith("\n")):
                assert run.poll() is None
                time.sleep(0.01)
            run.send_signal(number)
            assert run.wait(60) == 128 + number
        finally:
            run.kill()
    assert _ended(told.read_text().strip())


def _ended(number: str) -> bool:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        stat = Path("/proc", number, "stat")
        if not stat.exists() or ") Z " in stat.read_text():
            return True
        time.sleep(0.01)
    return False


def test_a_signal_is_a_negative_status(tmp_path: Path) -> None:
    assert process.run(["sh", "-c", "kill -9 $$"], tmp_path / "log", timeout=20) == -9


def test_a_program_that_is_missing_is_status_127(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert process.run(["/nonexistent/program"], log, timeout=20) == 127
    assert "No such file" in log.read_text()


def test_output_is_what_a_command_printed_without_its_errors() -> None:
    command = ["sh", "-c", "echo out; echo err >&2; exit 3"]
    assert process.output(command, timeout=20, stderr=subprocess.DEVNULL) == (3, "out\n")
    assert process.output(command, timeout=20, stderr=subprocess.STDOUT) == (3, "out\nerr\n")
