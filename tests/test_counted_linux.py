"""Counted runs of Debian's kernel: two boots are the same, a recorded one replays."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import vmlet
from conftest import initramfs, kernels, limit

pytestmark = [
    pytest.mark.linux,
    pytest.mark.interpreted,
]

Make = Callable[..., vmlet.VM]


def boot(make: Make, cpus: int = 1) -> vmlet.VM:
    """A Linux that says how much it did and powers off."""
    script = "cat /proc/interrupts /proc/uptime; date; nproc; poweroff -f"
    return make(
        kernel=kernels()["linux-6.1-cloud"],
        initramfs=initramfs(script),
        cmdline=f"{vmlet.default_cmdline('soft')} quiet",
        clock="icount",
        cpus=cpus,
    )


def ending(vm: vmlet.VM) -> tuple[str, int, str, bytes]:
    """How the run of ``vm`` ended, and everything that tells it from another."""
    event = vm.wait(timeout=limit(120))
    return event.kind, vm.instructions, vm.state_hash(), vm.console.read()


@pytest.mark.parametrize("cpus", [1, 2])
def test_two_boots_of_debian_are_the_same_whatever_the_host_asks(make: Make, cpus: int) -> None:
    first = boot(make, cpus)
    first.start()
    wanted = ending(first)
    first.close()
    assert wanted[0] == "poweroff"
    assert b"Thu Jan  1" in wanted[3]
    assert f"\n{cpus}\r\n".encode() in wanted[3]
    second, chance = boot(make, cpus), random.Random(7)
    for _ in range(20):
        assert second.run_for(instructions=chance.randrange(1, 3_000_000)) is None
        second.resume()
        _ = second.vcpus[-1].regs
        _ = second.memory[0:4096]
        second.pause()
    second.resume()
    assert ending(second) == wanted


def test_a_recorded_boot_of_debian_replays_to_the_same_state(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "boot.rec"
    settings = {
        "kernel": kernels()["linux-6.1-cloud"],
        "initramfs": initramfs(),
        "cmdline": f"{vmlet.default_cmdline('soft')} quiet",
        "clock": "icount",
    }
    vm = make(**settings)
    vm.record(path)
    vm.start()
    vm.console.expect("# ", timeout=limit(60))
    vm.console.write("echo $((6*7)) $RANDOM; date\n")
    vm.console.expect(re.compile(rb"\n42 \d+\r\n"), timeout=limit(20))
    vm.console.write("poweroff -f\n")
    kind, count, state, _ = ending(vm)
    vm.close()
    assert kind == "poweroff"
    again = vmlet.VM.replay(path, **settings)
    with again:
        again.start()
        assert ending(again)[:3] == (kind, count, state)


_TIERS = """
import sys
import vmlet

kernel, initramfs = sys.argv[1:]
cmdline = f"{vmlet.default_cmdline('soft')} quiet"
settings = {"engine": "soft", "clock": "icount", "cmdline": cmdline}
with vmlet.VM(kernel=kernel, initramfs=initramfs, **settings) as vm:
    for _ in range(3):
        vm.run_for(instructions=60_000_001)
        print(vm.instructions, vm.state_hash())
"""


def test_a_counted_boot_does_not_depend_on_what_is_translated(tmp_path: Path) -> None:
    files = tmp_path / "initramfs"
    files.write_bytes(initramfs("poweroff -f"))
    arguments = [str(kernels()["linux-6.1-cloud"]), str(files)]
    told = [
        subprocess.run(
            [sys.executable, "-c", _TIERS, *arguments],
            env=os.environ | {"VMLET_TRANSLATE_AFTER": after},
            stdout=subprocess.PIPE,
            timeout=limit(120),
            check=True,
        ).stdout
        for after in ("0", "1", "300")
    ]
    assert told[0] == told[1] == told[2]
    assert told[0].count(b"\n") == 3
