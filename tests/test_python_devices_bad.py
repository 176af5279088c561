"""Devices written in Python that raise, hang, give what they may not, or call their own VM."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vmlet
from conftest import limit
from guests import guest
from test_python_devices import AT, COUNTS, WRITES_AND_SPINS, Adder, Make

pytestmark = pytest.mark.engines


class Raises(Adder):
    """Raises in one of its callbacks."""

    def __init__(self, where: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.where = where
        self.after = 0

    def _at(self, where: str) -> None:
        self.after += 1
        if self.where == where:
            self.after = 0
            raise ZeroDivisionError(f"in {where}")

    def read(self, offset: int, size: int) -> int:
        self._at("read")
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self._at("write")

    def writes(self, batch: vmlet.Batch) -> None:
        self._at("writes")


@pytest.mark.parametrize("where", ["read", "write", "writes"])
def test_an_exception_ends_the_run_and_is_the_cause_of_its_error(make: Make, where: str) -> None:
    device = Raises(where, posted=where == "writes")
    vm = make(kernel=guest(COUNTS), devices=[device])
    with pytest.raises(vmlet.DeviceError, match=rf"Raises\.{where} failed.*in {where}") as caught:
        vm.run(timeout=limit(20))
    error = caught.value
    assert (error.device, error.callback) == (device, where)
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert error.__cause__.__traceback__ is not None
    assert vm.state == "ended"
    assert device.after == 0
    with pytest.raises(vmlet.DeviceError):
        vm.wait(timeout=limit(20))
    kinds = [(event.kind, event.source) for event in vm.events(timeout=limit(5))]
    assert kinds[-1] in (("error", "device"), ("reset", "keyboard-controller"))
    vm.close()
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.callback, copy.device) == (where, None)


def test_an_exception_while_the_guest_runs_on_stops_it(make: Make) -> None:
    vm = make(kernel=guest(WRITES_AND_SPINS), devices=[Raises("writes", posted=True)])
    with pytest.raises(vmlet.DeviceError):
        vm.run(timeout=limit(20))


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        (None, TypeError, "this one gave NoneType"),
        (1.0, TypeError, "this one gave float"),
        (b"\0\0\0\0", TypeError, "this one gave bytes"),
        (-1, ValueError, "gives 0 to 0xffffffff, and this one gave -1"),
        (1 << 32, ValueError, "a read of 4 bytes"),
        (1 << 70, ValueError, "a read of 4 bytes"),
    ],
)
def test_a_read_that_gives_something_else_is_an_error(
    make: Make, given: object, kind: type[Exception], words: str
) -> None:
    class Wrong(Adder):
        def read(self, offset: int, size: int) -> Any:
            return given

    vm = make(kernel=guest(COUNTS), devices=[Wrong()])
    with pytest.raises(vmlet.DeviceError, match=words) as caught:
        vm.run(timeout=limit(20))
    assert isinstance(caught.value.__cause__, kind)


REENTRIES: dict[str, Callable[[vmlet.VM], object]] = {
    "start": lambda vm: vm.start(),
    "pause": lambda vm: vm.pause(),
    "resume": lambda vm: vm.resume(),
    "stop": lambda vm: vm.stop(),
    "close": lambda vm: vm.close(),
    "wait": lambda vm: vm.wait(),
    "run": lambda vm: vm.run(),
    "save": lambda vm: vm._save(),
    "events": lambda vm: next(vm.events()),
    "expect": lambda vm: vm.console.expect("x", timeout=None),
    "step": lambda vm: vm.vcpus[0].step(),
    "sregs": lambda vm: vm.vcpus[0].sregs,
    "other vCPU": lambda vm: vm.vcpus[1].regs,
    "set regs": lambda vm: setattr(vm.vcpus[0], "regs", vmlet.Regs()),
    "walk": lambda vm: vm.walk(0),
    "translate": lambda vm: vm.translate(0),
    "dirty": lambda vm: vm.memory.dirty(),
    "attach": lambda vm: vm.attach(vmlet.Rng()),
    "attach Python": lambda vm: vm.attach(Late()),
    "detach": lambda vm: vm.detach(1),
}


class Late(vmlet.PciDevice):
    """A device that could come later."""

    vendor_id, device_id = 0x1B36, 0x0077


@pytest.mark.parametrize("posted", [False, True])
def test_what_would_deadlock_raises_at_once(make: Make, *, posted: bool) -> None:
    refused: dict[str, str] = {}

    class Calls(vmlet.MmioDevice):
        def write(self, offset: int, size: int, value: int) -> None:
            if refused:
                return
            calls: dict[str, Callable[[vmlet.VM], object]] = {
                **REENTRIES,
                "deliver": lambda _: self.deliver(),
            }
            for name, call in calls.items():
                try:
                    call(self.vm)
                except vmlet.ReentryError as error:
                    refused[name] = str(error)
            self.end_run()

    device = Calls(at=AT, size=0x1000, posted=posted)
    vm = make(kernel=guest(COUNTS), devices=[device], cpus=2)
    assert vm.run(timeout=limit(20)).kind == "stopped"
    expected = {*REENTRIES, "deliver"}
    assert set(refused) == expected
    callback = "Calls.writes" if posted else "Calls.write"
    assert f"pause would wait for {callback}, which it is called in" in refused["pause"]
    if posted:
        assert device.vcpu is None


def test_another_vm_can_be_used_in_a_callback(make: Make) -> None:
    inner = make(kernel=guest(COUNTS), devices=[Adder()])

    class Outer(Adder):
        def read(self, offset: int, size: int) -> int:
            assert inner.run(timeout=limit(20)).kind == "reset"
            return 77

    vm = make(kernel=guest(COUNTS), devices=[Outer()])
    assert vm.run(timeout=limit(20)).kind == "reset"
    assert vm.memory[0x200000:0x200001] == bytes([77])


class Hangs(Adder):
    """Waits in a callback until it is let go."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.inside, self.go = threading.Event(), threading.Event()

    def write(self, offset: int, size: int, value: int) -> None:
        self.inside.set()
        self.go.wait()


@pytest.mark.parametrize("posted", [False, True])
def test_a_hanging_callback_is_waited_for_as_long_as_said(make: Make, *, posted: bool) -> None:
    hangs = Hangs(posted=posted)
    vm = make(kernel=guest(COUNTS), devices=[hangs])
    vm.start()
    assert hangs.inside.wait(limit(20))
    with pytest.raises(vmlet.TimeoutError, match="a callback of a device still runs"):
        vm.close(timeout=0.1)
    hangs.go.set()
    vm.close(timeout=limit(20))
    assert vm.state == "closed"


@pytest.mark.parametrize("call", ["pause", "stop", "close", "wait", "regs"])
def test_ctrl_c_ends_the_wait_for_a_hanging_callback(make: Make, call: str) -> None:
    hangs = Hangs()
    vm = make(kernel=guest(COUNTS), devices=[hangs])
    vm.start()
    assert hangs.inside.wait(limit(20))
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        vm.vcpus[0].regs if call == "regs" else getattr(vm, call)()
    hangs.go.set()
    if call in ("pause", "wait", "regs"):
        assert vm.wait(timeout=limit(20)).kind == "reset"


@pytest.mark.parametrize("body", ["while True: pass", "time.sleep(60)"])
def test_a_script_that_ends_in_a_callback_ends(engine: str, tmp_path: Path, body: str) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(guest(COUNTS))
    script = f"""
        import threading, time, vmlet
        inside = threading.Event()
        class Hangs(vmlet.MmioDevice):
            def write(self, offset, size, value):
                inside.set()
                {body}
        vm = vmlet.VM(kernel={str(kernel)!r}, engine={engine!r}, devices=[Hangs(at={AT}, size=8)])
        vm.start()
        inside.wait()
        print("done", flush=True)
        raise SystemExit(3)
    """
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=limit(30),
        check=False,
    )
    assert (done.stdout, done.returncode) == ("done\n", 3), done.stderr
    assert time.monotonic() - begun < limit(10)


class _Quiet:
    """What a collection warns of on another thread is not the test's."""

    def __enter__(self) -> None:
        self._hook = sys.unraisablehook
        sys.unraisablehook = lambda unraisable: None

    def __exit__(self, *_: object) -> None:
        time.sleep(limit(0.2))
        sys.unraisablehook = self._hook


def test_a_vm_that_its_own_callback_drops_is_gone(nothing_left: None, engine: str) -> None:
    class Drops(Adder):
        def write(self, offset: int, size: int, value: int) -> None:
            held.clear()
            dropped.set()

    dropped = threading.Event()
    held = [vmlet.VM(kernel=guest(COUNTS), engine=engine, devices=[Drops()])]  # type: ignore[arg-type]
    with _Quiet():
        held[0].start()
        assert dropped.wait(limit(20))


def test_saving_hooks_that_fail_leave_the_vm_usable(make: Make) -> None:
    class Fails(Adder):
        def save(self) -> Any:
            return "no bytes"

    vm = make(kernel=guest(WRITES_AND_SPINS), devices=[Fails()])
    vm.start()
    vm.pause()
    with pytest.raises(vmlet.DeviceError, match=r"Fails\.save failed: TypeError: save gives bytes"):
        vm._save()
    vm.resume()
    vm.stop()
    assert vm.wait(timeout=limit(20)).kind == "stopped"


def test_a_restore_that_raises_is_the_cause(make: Make, engine: str) -> None:
    class Picky(Adder):
        def restore(self, state: bytes) -> None:
            raise ValueError("not mine")

    vm = make(kernel=guest(WRITES_AND_SPINS), devices=[Picky()])
    vm.start()
    vm.pause()
    with pytest.raises(vmlet.DeviceError, match="not mine"):
        vmlet.VM._restore(vm._save(), engine=engine, devices=[Picky()])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ([5], "5 is no device"),
        (5, "devices cannot be 5"),
        ([vmlet.MmioDevice(at=0, size=0x1000)], "where the VM has memory"),
        ([vmlet.MmioDevice(at=0xFEC0_0000, size=8)], "overlaps I/O APIC"),
        ([vmlet.MmioDevice(at=0xFEE0_0000, size=8)], "where the local APICs are"),
        ([vmlet.PioDevice(at=0x3F8, size=1)], "overlaps serial"),
        ([vmlet.PioDevice(at=0xFFFF, size=2)], "Give ports below 0x10000"),
        ([vmlet.PioDevice(at=0x500, size=1, irq=4)], "on irq 4"),
        ([Adder(), Adder()], "overlaps Adder"),
        ([Adder(irq=5), Adder(at=0xD100_0000, irq=5)], "two devices on irq 5"),
    ],
)
def test_devices_that_cannot_be_there_are_named(make: Make, devices: Any, words: str) -> None:
    with pytest.raises(vmlet.ConfigError) as caught:
        make(kernel=guest(COUNTS), devices=devices)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"at": -1},
        {"at": 1 << 64},
        {"size": 0},
        {"at": "a"},
        {"irq": 24},
        {"irq": True},
        {"room": 1},
        {"delay": 0},
        {"delay": "1"},
    ],
)
def test_settings_of_a_device_are_checked(engine: str, settings: dict[str, Any]) -> None:
    with pytest.raises(vmlet.ConfigError):
        Adder(**settings)


def test_a_device_belongs_to_one_vm_at_a_time(make: Make) -> None:
    adder = Adder()
    with pytest.raises(vmlet.StateError, match="is on no VM"):
        adder.irq.pulse()
    vm = make(kernel=guest(COUNTS), devices=[adder])
    with pytest.raises(vmlet.ConfigError, match="is on a VM"):
        make(kernel=guest(COUNTS), devices=[adder])
    with pytest.raises(vmlet.ConfigError, match="there twice"):
        make(kernel=guest(COUNTS), devices=[twice := Adder(), twice])
    vm.close()
    with pytest.raises(vmlet.ClosedError):
        adder.irq.pulse()
    assert make(kernel=guest(COUNTS), devices=[adder]).run(timeout=limit(20)).kind == "reset"
