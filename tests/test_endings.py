"""A script that ends with a VM running ends at once, with its own status and without a core."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import vmlet
from conftest import SLACK, Engine, Holdings, limit
from guests import guest

pytestmark = pytest.mark.engines

#: A guest that counts for ever at 0x200000.
COUNTER = "1: incl 0x200000; jmp 1b"

_BEGIN = """
import atexit, gc, os, signal, sys, threading, time
LAST = []
atexit.register(lambda: [work() for work in LAST])
import vmlet
image = open(sys.argv[1], "rb").read()
engine = os.environ["VMLET_TEST_ENGINE"]

def running():
    vm = vmlet.VM(kernel=image, memory="64M", cpus=2, engine=engine)
    vm.start()
    return vm

def done():
    os.write(1, b"done\\n")

"""


@pytest.fixture(autouse=True)
def engine_of_scripts(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts make their VMs on the engine that the test runs on."""
    monkeypatch.setenv("VMLET_TEST_ENGINE", engine)


@dataclass(frozen=True)
class Ending:
    """How a script ended, and how long after its last work."""

    status: int
    seconds: float
    errors: str


def run_script(
    body: str, folder: Path, act: Callable[[subprocess.Popen[str]], None] | None = None
) -> Ending:
    """Runs a script that calls ``done()`` when its work is over; ``act`` is done to it then."""
    image, script = folder / "guest", folder / "script.py"
    image.write_bytes(guest(COUNTER))
    script.write_text(_BEGIN + textwrap.dedent(body))
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", script, image],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
    )
    assert process.stdout
    assert process.stderr
    watchdog = threading.Timer(limit(30), process.kill)
    watchdog.start()
    first = process.stdout.readline()
    began = time.monotonic()
    if act is not None:
        act(process)
    status = process.wait()
    seconds = time.monotonic() - began
    watchdog.cancel()
    errors = process.stderr.read()
    process.stdout.close()
    process.stderr.close()
    assert first == "done\n", errors
    assert not [path.name for path in folder.iterdir() if path.name.startswith("core")]
    return Ending(status, seconds, errors)


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        ("done()", 0, ""),
        ("done(); sys.exit(7)", 7, ""),
        ("done(); raise RuntimeError('mine')", 1, "RuntimeError: mine"),
        ("done(); os._exit(3)", 3, ""),
        ("del vm; gc.collect(); done()", 0, "unclosed"),
        ("vm.self = vm; vm.other = [vm]; del vm; done(); gc.collect()", 0, "unclosed"),
        ("vm.close(); done()", 0, ""),
        ("view = memoryview(vm.memory.view(0, 4096)); done()", 0, ""),
        ("vms = [running() for _ in range(5)]; done()", 0, ""),
        ("LAST.append(lambda: running().close()); done()", 0, ""),
    ],
    ids=[
        "normal",
        "exit",
        "exception",
        "_exit",
        "collected",
        "cycle",
        "closed",
        "view",
        "many",
        "used at the very end",
    ],
)
def test_a_script_ends_at_once_with_its_own_status(
    tmp_path: Path, end: str, status: int, said: str
) -> None:
    ending = run_script(
        f"import warnings\nwarnings.simplefilter('always')\nvm = running()\n{end}\n", tmp_path
    )
    assert ending.status == status, ending.errors
    assert ending.seconds < limit(1)
    assert said in ending.errors
    assert said or not ending.errors


def test_sigterm_ends_a_script_by_that_signal(tmp_path: Path) -> None:
    ending = run_script(
        "vm = running(); done(); vm.wait()", tmp_path, lambda process: process.terminate()
    )
    assert ending.status == -signal.SIGTERM
    assert ending.seconds < limit(1)


def test_a_handler_of_sigterm_gives_its_own_status(tmp_path: Path) -> None:
    body = """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
        vm = running(); done(); vm.wait()
    """
    ending = run_script(body, tmp_path, lambda process: process.terminate())
    assert (ending.status, ending.errors) == (9, "")
    assert ending.seconds < limit(1)


@pytest.mark.parametrize(
    "wait",
    [
        "vm.wait()",
        "vm.console.expect('never', timeout=None)",
        "vm.console.read(timeout=None)",
        "list(vm.events())",
        "list(vm.console)",
        "vm.run()",
    ],
)
def test_ctrl_c_interrupts_whatever_waits(tmp_path: Path, wait: str) -> None:
    def interrupt(process: subprocess.Popen[str]) -> None:
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)

    made = "running()"
    if wait == "vm.run()":
        made = "vmlet.VM(kernel=image, memory='64M', engine=engine)"
    body = f"""
        vm = {made}
        try:
            done(); {wait}
        except KeyboardInterrupt:
            assert vm.state == "running", vm.state
            sys.exit(42)
    """
    ending = run_script(body, tmp_path, interrupt)
    assert ending.status == 42, ending.errors
    assert ending.seconds < limit(1) + 0.2


@pytest.mark.parametrize(
    "wait", ["vm.wait()", "vm.console.read(timeout=None)", "list(vm.events())", "spin(vm)"]
)
def test_a_daemon_thread_that_waits_does_not_hold_the_end(tmp_path: Path, wait: str) -> None:
    body = f"""
        def spin(vm):
            while True:
                vm.memory[0:4096]

        def work():
            try:
                {wait}
            except vmlet.ClosedError:
                pass

        vm = running()
        for _ in range(3):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.1); done()
    """
    ending = run_script(body, tmp_path)
    assert (ending.status, ending.errors) == (0, "")
    assert ending.seconds < limit(1)


def test_the_interpreter_does_not_end_while_an_error_is_made(tmp_path: Path) -> None:
    body = """
        plain = vmlet.ClosedError.__init__
        def slow(self, *words, **more):
            time.sleep(0.1)
            plain(self, *words, **more)
            os.write(2, b"made")
        vmlet.ClosedError.__init__ = slow

        class Late:
            # The interpreter is ending, and lets other threads have their turn.
            def __del__(self, sleep=time.sleep):
                sleep(0.2)

        def work():
            try:
                vm.wait()
            except vmlet.ClosedError:
                pass

        vm, late = running(), Late()
        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.1); done()
    """
    ending = run_script(body, tmp_path)
    assert (ending.status, ending.errors) == (0, "made")


FORK = """
    import warnings
    warnings.simplefilter("ignore")
    vm = running()
    view = memoryview(vm.memory.view(0x100000, 4096, writable=True))
    assert bytes(view[:4]) != bytes(4)
    calls = {
        "start": vm.start, "pause": vm.pause, "resume": vm.resume, "stop": vm.stop,
        "close": vm.close, "wait": lambda: vm.wait(1), "run": lambda: vm.run(1),
        "events": lambda: list(vm.events(1)), "engine": lambda: vm.engine,
        "state": lambda: vm.state, "translate": lambda: vm.translate(0),
        "unclaimed_ports": vm.unclaimed_ports, "memory": lambda: vm.memory[0:1],
        "set memory": lambda: vm.memory.__setitem__(slice(0, 1), b"x"),
        "len": lambda: len(vm.memory), "view": lambda: vm.memory.view(0, 1),
        "regions": vm.memory.regions, "dirty": vm.memory.dirty,
        "unclaimed": vm.memory.unclaimed, "read": vm.console.read,
        "write": lambda: vm.console.write("x"), "lines": lambda: list(vm.console),
        "expect": lambda: vm.console.expect("x", 1), "dropped": lambda: vm.console.dropped,
        "regs": lambda: vm.vcpus[0].regs, "sregs": lambda: vm.vcpus[0].sregs,
        "set regs": lambda: setattr(vm.vcpus[0], "regs", vmlet.Regs()),
        "step": vm.vcpus[0].step,
    }

    def child():
        for name, call in calls.items():
            try:
                call()
            except vmlet.ForkedProcessError as error:
                assert error.remedy, name
            else:
                raise AssertionError(name)
        assert view == bytes(4096)
        view[0] = 1  # Its own page, not the guest's.
        assert "another process" in repr(vm)
        with vmlet.VM(kernel=image, memory="64M", engine=engine) as own:
            own.start()
            own.pause()
        vmlet._core.drain()
"""


def test_a_forked_child_has_no_vm_and_the_parents_runs_on(tmp_path: Path) -> None:
    body = f"""
{textwrap.dedent(FORK)}
code = bytes(view[:16])
pid = os.fork()
if pid == 0:
    try:
        child()
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
_, status = os.waitpid(pid, 0)
assert status == 0, status
before = vm.memory[0x200000:0x200004]
time.sleep({limit(0.1)})
assert vm.memory[0x200000:0x200004] != before
assert bytes(view[:16]) == code
assert vm.state == "running"
done()
"""
    ending = run_script(body, tmp_path)
    assert (ending.status, ending.errors) == (0, "")


def test_a_forked_child_that_ends_normally_leaves_the_block_in_peace(tmp_path: Path) -> None:
    body = """
        with running() as vm:
            pid = os.fork()
            if pid == 0:
                sys.exit(5)
            _, status = os.waitpid(pid, 0)
            assert os.waitstatus_to_exitcode(status) == 5
            assert vm.state == "running"
            vm.pause()
        done()
    """
    ending = run_script(body, tmp_path)
    assert (ending.status, ending.errors) == (0, "")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_runs_vms_in_its_workers(tmp_path: Path, method: str) -> None:
    body = f"""
        import multiprocessing

        def work(number):
            with vmlet.VM(kernel=image, memory="4M", engine=engine) as vm:
                vm.start()
                vm.pause()
                return vm.state, number

        if __name__ == "__main__":
            vm = running()
            with multiprocessing.get_context("{method}").Pool(2) as pool:
                assert pool.map(work, range(4)) == [("paused", n) for n in range(4)]
                try:
                    pool.apply(work, (vm,))
                except TypeError as error:
                    assert "cannot be pickled" in str(error)
                else:
                    raise AssertionError("a VM was pickled")
            assert vm.state == "running"
            done()
    """
    ending = run_script(body, tmp_path)
    assert (ending.status, ending.errors) == (0, "")


def test_a_subinterpreter_is_refused_clearly(tmp_path: Path) -> None:
    body = """
        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters
        other = interpreters.create()
        try:
            failure = interpreters.run_string(other, "import sys; sys.path[:] = " + repr(sys.path)
                + "; import vmlet")
        except Exception as error:
            failure = error
        assert "subinterpreter" in str(failure), failure
        interpreters.destroy(other)
        done()
    """
    ending = run_script(body, tmp_path)
    assert (ending.status, ending.errors) == (0, "")


def test_a_thousand_vms_leave_nothing_behind(engine: Engine) -> None:
    # A lab takes a sixth of a second for each: there a hundred must do.
    count = 100 if "VMLET_LAB" in os.environ else 1000
    image = guest("putc '.'; poweroff; spin")

    def live() -> None:
        with vmlet.VM(kernel=image, memory="4M", engine=engine) as vm:
            assert vm.run(timeout=limit(20)).kind == "poweroff"
            assert vm.console.read() == b"."

    for _ in range(20):
        live()
    before, resident = Holdings.now(), _resident()
    for _ in range(count):
        live()
    after = Holdings.now()
    assert after.descriptors == before.descriptors
    assert after.threads == ()
    assert after.vcpus == before.vcpus
    assert after.writable <= before.writable + SLACK
    assert _resident() <= resident + SLACK


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
