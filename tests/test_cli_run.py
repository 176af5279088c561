"""``vmlet run`` on a terminal of its own: raw while the guest has it, and as before afterwards."""

from __future__ import annotations

import argparse
import ctypes
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import vmlet
from conftest import limit
from guests import guest
from vmlet.cli import run
from vmlet.cli.session import Streams

pytestmark = pytest.mark.skipif("VMLET_LAB" in os.environ, reason="a terminal is the same there")

# Prints ">", then each byte that it reads with bit 6 turned: Ctrl-C becomes "C", "a" becomes "!".
# "Q" ends it by power-off, "T" by a triple fault.
ECHO = """
    putc '>'
1:  mov $COM1 + 5, %dx
    in %dx, %al
    test $1, %al
    jz 1b
    mov $COM1, %dx
    in %dx, %al
    cmp $'Q', %al
    je 2f
    cmp $'T', %al
    je 3f
    xor $0x40, %al
    out %al, %dx
    jmp 1b
2:  poweroff
    spin
3:  push $0
    push $0
    lidt (%esp)
    ud2
"""
# Makes the terminal on its input the one that it is controlled by, then becomes `vmlet`.
BEGIN = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "vmlet.cli", *sys.argv[1:]])
"""
#: Linux, arch/x86/entry/syscalls/syscall_64.tbl.
SYS_TGKILL = 234
CTRL_C, ESCAPE = b"\x03", b"\x1d"


class Terminal:
    """A terminal, and ``vmlet run`` on it."""

    def __init__(self, kernel: Path, *options: str) -> None:
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.seen = b""
        words = ["run", str(kernel), "--engine", "soft", "--memory", "4M", *options]
        self.process = subprocess.Popen(
            [sys.executable, "-c", BEGIN, *words],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
        )

    def type(self, data: bytes) -> None:
        """What a user's keys send."""
        os.write(self.master, data)

    def expect(self, wanted: bytes) -> bytes:
        """What was shown up to ``wanted``; what follows stays for the next call."""
        end = time.monotonic() + limit(30)
        while wanted not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            assert ready, f"{wanted!r} did not come; there is {self.seen!r}"
            self.seen += os.read(self.master, 4096)
        shown, _, self.seen = self.seen.partition(wanted)
        return shown

    def ends_with(self, status: int) -> None:
        """Waits for its end; where the exit status is another, what it said tells why."""
        ended = self.process.wait(limit(30))
        while self.master >= 0 and select.select([self.master], [], [], 0)[0]:
            self.seen += os.read(self.master, 4096)
        assert ended == status, self.seen

    def restored(self) -> bool:
        """Whether the terminal is as it was before."""
        return termios.tcgetattr(self.slave) == self.before

    def raw(self) -> bool:
        """Whether keys reach the reader one by one, without echo, signals and translation."""
        inputs, outputs, _, modes = termios.tcgetattr(self.slave)[:4]
        off = modes & (termios.ICANON | termios.ECHO | termios.ISIG | termios.IEXTEN)
        return (
            not off and not inputs & (termios.ICRNL | termios.IXON) and not outputs & termios.OPOST
        )

    def close(self) -> None:
        """Ends what still runs."""
        self.process.kill()
        self.process.wait()
        for descriptor in (self.master, self.slave):
            if descriptor >= 0:
                os.close(descriptor)


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """The guest that answers keys."""
    image = tmp_path / "guest"
    image.write_bytes(guest(ECHO))
    return image


@pytest.fixture
def terminal(kernel: Path) -> Iterator[Callable[..., Terminal]]:
    """Starts ``vmlet run`` on a terminal; gives it back when the guest has begun."""
    made: list[Terminal] = []

    def begin(*options: str) -> Terminal:
        made.append(Terminal(kernel, *options))
        made[-1].expect(b">")
        return made[-1]

    yield begin
    for one in made:
        one.close()


Begin = Callable[..., Terminal]


def test_every_key_reaches_the_guest_and_is_not_echoed(terminal: Begin) -> None:
    shell = terminal()
    assert shell.raw()
    # Ctrl-C, Ctrl-D, Ctrl-Z, Ctrl-\, Ctrl-S, Ctrl-Q and Enter.
    shell.type(b"\x03\x04\x1a\x1c\x13\x11\ra")
    assert shell.expect(b"CDZ\\SQM!") == b""
    assert shell.process.poll() is None
    shell.type(b"Q")
    shell.ends_with(0)
    assert shell.restored()


def test_the_escape_key_is_told_and_quits(terminal: Begin, kernel: Path) -> None:
    shell = Terminal(kernel)
    try:
        assert b"escape: Ctrl-] then q quits" in shell.expect(b">")
        shell.type(ESCAPE + b"q")
        shell.ends_with(0)
        assert shell.restored()
    finally:
        shell.close()


def test_the_escape_key_typed_twice_reaches_the_guest(terminal: Begin) -> None:
    shell = terminal()
    shell.type(b"a" + ESCAPE)
    assert shell.expect(b"!") == b""
    shell.type(ESCAPE + b"b")
    assert shell.expect(b'"') == b"]"


def test_the_escape_key_pauses_resumes_and_shows_registers(terminal: Begin) -> None:
    shell = terminal()
    shell.type(ESCAPE + b"p")
    shell.expect(b"[vmlet] paused; Ctrl-] p resumes\r\n")
    shell.type(b"a" + ESCAPE + b"r")
    shown = shell.expect(b"rflags")
    assert b"[vmlet] vCPU 0\r\n" in shown
    assert b"   rip 0000000000" in shown
    assert b"!" not in shown
    shell.type(ESCAPE + b"p" + b"b")
    # What the guest prints may come before our word on it.
    assert b"!" in shell.expect(b"[vmlet] resumed\r\n") + shell.expect(b'"')


def test_an_unknown_command_of_the_escape_key_shows_what_there_is(terminal: Begin) -> None:
    shell = terminal()
    shell.type(ESCAPE + b"x")
    assert b"no command 'x'" in shell.expect(b"Ctrl-] then q: quit, p: pause or resume")
    shell.type(ESCAPE + b"?")
    shell.expect(b"send Ctrl-]\r\n")
    shell.type(b"a")
    shell.expect(b"!")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_it_and_the_terminal_is_as_before(
    terminal: Begin, number: signal.Signals, status: int
) -> None:
    shell = terminal()
    shell.process.send_signal(number)
    shell.ends_with(status)
    assert shell.restored()


def test_an_interrupt_sent_to_it_is_one(terminal: Begin) -> None:
    shell = terminal()
    shell.process.send_signal(signal.SIGINT)
    shell.ends_with(130)
    assert shell.restored()


def test_a_guest_that_fails_leaves_the_terminal_as_before(terminal: Begin) -> None:
    shell = terminal()
    shell.type(b"T")
    shell.expect(b"vmlet: the run ended by triple-fault")
    shell.ends_with(4)
    assert shell.restored()


def test_the_time_limit_leaves_the_terminal_as_before(terminal: Begin) -> None:
    shell = terminal("--timeout", "1")
    shell.ends_with(124)
    assert shell.restored()


def test_a_terminal_that_hangs_up_ends_it(terminal: Begin) -> None:
    shell = terminal()
    for name in ("master", "slave"):
        os.close(getattr(shell, name))
        setattr(shell, name, -1)
    shell.ends_with(128 + signal.SIGHUP)


def test_what_a_shell_changed_while_it_was_stopped_is_made_raw_again(terminal: Begin) -> None:
    shell = terminal()
    shell.process.send_signal(signal.SIGSTOP)
    termios.tcsetattr(shell.slave, termios.TCSANOW, shell.before)
    shell.process.send_signal(signal.SIGCONT)
    end = time.monotonic() + limit(10)
    while not shell.raw() and time.monotonic() < end:
        time.sleep(0.01)
    assert shell.raw()
    shell.type(CTRL_C)
    assert shell.expect(b"C") == b""
    shell.type(ESCAPE + b"q")
    shell.ends_with(0)
    assert shell.restored()


def test_a_signal_that_meets_another_thread_is_handled_at_once(terminal: Begin) -> None:
    shell = terminal()
    pid = shell.process.pid
    tasks = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
    other = max(task for task in tasks if task != pid)
    termios.tcsetattr(shell.slave, termios.TCSANOW, shell.before)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.syscall(SYS_TGKILL, pid, other, signal.SIGCONT) == 0
    end = time.monotonic() + limit(10)
    while not shell.raw() and time.monotonic() < end:
        time.sleep(0.01)
    assert shell.raw()


def test_without_input_keys_and_terminal_are_left_alone(terminal: Begin) -> None:
    shell = terminal("--no-input")
    assert shell.restored()
    shell.type(CTRL_C)
    shell.ends_with(130)


class Broken:
    """A machine that fails when it is started."""

    engine, state, vcpus, console = "soft", "created", (), None

    def start(self) -> None:
        raise vmlet.HostError("no power", remedy="plug it in")

    def stop(self) -> None:
        """Nothing runs."""

    def close(self) -> None:
        """Nothing is open."""


def test_an_exception_leaves_the_terminal_as_before(kernel: Path) -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    said = io.StringIO()
    arguments = parsed(str(kernel))

    def broken(**options: Any) -> Any:
        return Broken()

    try:
        with pytest.raises(vmlet.HostError, match="no power"):
            run.execute(arguments, make_machine=broken, streams=Streams(slave, slave, said))
        assert "escape:" in said.getvalue()
        assert termios.tcgetattr(slave) == before
    finally:
        os.close(master)
        os.close(slave)


def parsed(*words: str) -> argparse.Namespace:
    from vmlet.cli import build_parser

    return build_parser().parse_args(["run", *words])


def vmlet_run(*words: str | Path, typed: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """``vmlet run`` between pipes."""
    command = [sys.executable, "-m", "vmlet.cli", "run", *map(str, words)]
    return subprocess.run(command, input=typed, capture_output=True, check=False, timeout=limit(60))


def test_between_pipes_bytes_go_through_as_they_are(kernel: Path) -> None:
    done = vmlet_run(kernel, "--engine", "soft", "--memory", "4M", typed=b"\x03\x1d\xffQ")
    assert (done.returncode, done.stdout, done.stderr) == (0, b">C]\xbf", b"")


def test_a_cpu_model_that_the_engine_lacks_is_one_message_with_its_features(kernel: Path) -> None:
    words = (kernel, "--engine", "soft", "--memory", "4M", "--cpu")
    assert vmlet_run(*words, "x86-64-v1", typed=b"Q").returncode == 0
    done = vmlet_run(*words, "x86-64-v2")
    assert done.returncode == 2
    assert b"pni, ssse3, sse4_1, sse4_2, popcnt" in done.stderr


def test_json_gives_the_event_on_a_line_of_its_own(kernel: Path) -> None:
    done = vmlet_run(kernel, "--engine", "soft", "--memory", "4M", "--json", typed=b"T")
    *_, last = done.stdout.decode().splitlines()
    answer = json.loads(last)
    assert (answer["event"]["kind"], answer["status"], answer["engine"]) == (
        "triple-fault",
        4,
        "soft",
    )
    assert answer["kernel"] == str(kernel)
    assert done.returncode == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "the following arguments are required: KERNEL"),
        (("/nowhere/vmlinuz",), "there is no file '/nowhere/vmlinuz'"),
        (("9.99-none",), "9.99-none"),
        (("KERNEL", "--memory", "lots"), "lots"),
        (("KERNEL", "--engine", "soft", "--cpus", "0"), "cpus"),
        (("KERNEL", "--cpus", "two"), "invalid int value"),
        (("KERNEL", "--engine", "magic"), "magic"),
        (("KERNEL", "--engine", "soft", "--cpu", "magic"), '"x86-64-v1"'),
        (("KERNEL", "--engine", "soft", "--protocol", "magic"), "magic"),
        (("KERNEL", "--timeout", "-1"), "is not a positive number of seconds"),
        (("KERNEL", "--timeout", "inf"), "is not a positive number of seconds"),
        (("KERNEL", "--initramfs", "/nowhere"), "there is no file '/nowhere'"),
        (("KERNEL", "--cmdline", "a", "--append", "b"), "not allowed with argument"),
        (("KERNEL", "--frobnicate"), "unrecognized arguments: --frobnicate"),
    ],
)
def test_wrong_usage_is_status_2_with_one_message(
    kernel: Path, words: tuple[str, ...], said: str
) -> None:
    done = vmlet_run(*(str(kernel) if word == "KERNEL" else word for word in words))
    text = done.stderr.decode()
    assert done.returncode == 2
    assert text.startswith("vmlet: error: ")
    assert said in text
    assert "Traceback" not in text
    assert done.stdout == b""
