"""The virtio console: a shell on /dev/hvc0 of Debian's kernels."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import vmlet
import vmlet.aio
from conftest import Engine, command, default_engine, initramfs, kernels, limit, short
from guests import guest

pytestmark = pytest.mark.linux

Make = Callable[..., vmlet.VM]

KERNEL = "linux-6.12-cloud"
#: A second shell, beside that of the serial port; one that edits lines would print more than asked.
SHELL = """
READS='echo ready; while read -r line; do eval "$line"; done'
(stty -echo; exec setsid -c sh -c "$READS") </dev/hvc0 >/dev/hvc0 2>&1 &
"""


def settings(script: str = SHELL) -> dict[str, Any]:
    return {
        "kernel": kernels()[KERNEL],
        "initramfs": initramfs(script, modules=("virtio_pci",), kernel=KERNEL),
        "cmdline": short(f"{vmlet.default_cmdline(default_engine())} quiet loglevel=1"),
    }


def booted(make: Make, *devices: vmlet.devices.Model, **more: Any) -> vmlet.VM:
    """A guest with a shell on each of its consoles."""
    vm = make(**settings(), devices=devices, **more)
    vm.start()
    vm.console.expect("# ", timeout=limit(60))
    if devices:
        vm.terminal.expect("ready\r\n", timeout=limit(20))
    return vm


def says(vm: vmlet.VM, line: str) -> str:
    """What the shell on the virtio console prints for ``line``."""
    vm.terminal.write(f"{line}; echo said\n")
    found = vm.terminal.expect(re.compile(rb"\A(.*?)said\r\n", re.DOTALL), timeout=limit(30))
    return found[1].decode().replace("\r", "").strip()


@pytest.mark.engines
def test_a_shell_reads_writes_and_knows_its_window(make: Make, engine: Engine) -> None:
    vm = booted(make, vmlet.VirtioConsole(columns=100, rows=40))
    assert says(vm, "tty; stty size") == "/dev/hvc0\n40 100"
    vm.terminal.resize(132, 50)
    assert says(vm, "sleep 0.2; stty size") == "50 132"
    # Much in both directions, with pauses in the middle.
    text = b"".join(b"%063d\n" % number for number in range(500))
    vm.terminal.write("head -n 500 | tee /dev/hvc0 | md5sum\n")
    for start in range(0, len(text), 8000):
        piece = text[start : start + 8000]
        assert vm.terminal.write(piece) == len(piece)
        vm.pause()
        vm.resume()
    digest = hashlib.md5(text, usedforsecurity=False).hexdigest()
    found = vm.terminal.expect(
        re.compile(rb"\A(.*)" + digest.encode(), re.DOTALL), timeout=limit(60)
    )
    assert found[1].replace(b"\r", b"") == text
    vm.terminal.write("seq 3\n")
    lines = vm.terminal.lines(timeout=limit(20))
    assert [next(lines)[-1] for _ in range(4)] == ["-", "1", "2", "3"]


@pytest.mark.interpreted
def test_output_that_nobody_reads_is_bounded_and_counted(make: Make) -> None:
    vm = booted(make, vmlet.VirtioConsole(), console_limit="64K")
    vm.terminal.write("yes 0123456789 | head -n 20000; echo all\n")
    command(vm, "for i in $(seq 300); do pidof head || break; sleep 0.1; done; sleep 0.5")
    assert says(vm, "echo more").endswith("more")
    assert vm.terminal.dropped >= 20000 * 12 - (64 << 10)
    vm.close()
    with pytest.raises(vmlet.ClosedError):
        vm.terminal.read()


def test_what_the_guest_does_not_read_is_bounded(make: Make) -> None:
    vm = make(kernel=guest("spin"), devices=[vmlet.VirtioConsole()])
    assert vm.terminal.write(b"x" * (3 << 20)) == 1 << 20
    assert vm.terminal.write("x") == 0
    with pytest.raises(vmlet.TimeoutError, match="not printed"):
        vm.terminal.expect("x", timeout=0.01)


@pytest.mark.interpreted
def test_a_saved_vm_goes_on_with_its_console(make: Make) -> None:
    vm = booted(make, vmlet.VirtioConsole(), cpu="soft-v1", engine="soft")
    says(vm, "cd /sys; word=kept")
    vm.pause()
    vm.terminal.write("echo $word; pwd\n")
    saved = vm._save()
    vm.close()
    devices = [vmlet.VirtioConsole()]
    with vmlet.VM._restore(saved, engine="soft", devices=devices) as again:
        again.start()
        again.terminal.expect("kept\r\n/sys\r\n", timeout=limit(20))
        again.terminal.resize(90, 30)
        assert says(again, "sleep 0.2; stty size") == "30 90"


def test_the_asyncio_twin_has_it() -> None:
    async def talk() -> list[str]:
        devices = [vmlet.VirtioConsole()]
        async with vmlet.aio.VM(**settings(), devices=devices, engine=default_engine()) as vm:
            await vm.start()
            await vm.terminal.expect("ready\r\n", timeout=limit(60))
            vm.terminal.resize(90, 30)
            vm.terminal.write("sleep 0.2; stty size; seq 2\n")
            lines = vm.terminal.lines(timeout=limit(20))
            return [line async for line in take(lines, 3)]

    assert asyncio.run(talk()) == ["30 90", "1", "2"]


async def take(lines: AsyncIterator[str], count: int) -> AsyncIterator[str]:
    """The first ``count`` of them."""
    for _ in range(count):
        yield await anext(lines)


@pytest.mark.parametrize("size", [-1, 1 << 16, True, 1.5, None, "80"])
def test_windows_that_cannot_be_are_refused(make: Make, size: int) -> None:
    for place in ("columns", "rows"):
        with pytest.raises(vmlet.ConfigError, match=place):
            vmlet.VirtioConsole(**{place: size})
    vm = make(kernel=guest("spin"), devices=[vmlet.VirtioConsole()])
    with pytest.raises(vmlet.ConfigError, match="rows"):
        vm.terminal.resize(80, size)


def test_a_vm_has_one(make: Make) -> None:
    with pytest.raises(vmlet.ConfigError, match="second"):
        make(kernel=guest("spin"), devices=[vmlet.VirtioConsole(), vmlet.VirtioConsole()])
    vm = make(kernel=guest("spin"))
    for use in (lambda: vm.terminal.resize(1, 1), lambda: vm.terminal.write("x"), vm.terminal.read):
        with pytest.raises(vmlet.ConfigError, match=r"vmlet\.VirtioConsole"):
            use()


@pytest.mark.interpreted
def test_a_recorded_run_replays_with_what_was_typed(make: Make, tmp_path: Path) -> None:
    what = settings(f"{SHELL}while [ ! -e /end ]; do sleep 1; done; poweroff -f")
    what["devices"] = [vmlet.VirtioConsole(columns=80, rows=25)]
    vm = make(clock="icount", engine="soft", **what)
    vm.record(tmp_path / "run.rec")
    vm.start()
    vm.terminal.expect("ready\r\n", timeout=limit(60))
    assert says(vm, "stty size") == "25 80"
    vm.terminal.write("echo $((6*7)); cat /proc/interrupts; touch /end\n")
    assert vm.wait(timeout=limit(60)).kind == "poweroff"
    end = (vm.instructions, vm.state_hash())
    said = vm.terminal.read()
    assert b"42" in said
    vm.close()
    with vmlet.VM.replay(tmp_path / "run.rec", engine="soft", **what) as again:
        with pytest.raises(vmlet.StateError, match="record alone"):
            again.terminal.write("x")
        assert again.run(timeout=limit(120)).kind == "poweroff"
        assert (again.instructions, again.state_hash()) == end
        assert again.terminal.read().endswith(said)
