"""A Debian guest goes on where another engine takes it over."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import vmlet
from conftest import Engine, initramfs, kernels, lacks, limit

Make = Callable[..., vmlet.VM]

#: Rates that the software CPU's clock can have; an emulator's processor may have another.
SOFT_KHZ = range(100_000, 4_000_001)


@pytest.mark.parametrize(
    ("first", "second", "cpu"), [("soft", "kvm", "x86-64-v1"), ("kvm", "soft", "soft-v1")]
)
@pytest.mark.kvm_linux
def test_debian_moves_from_one_engine_to_the_other_and_goes_on(
    first: Engine, second: Engine, cpu: str, make: Make
) -> None:
    khz = vmlet.capabilities()["tsc_khz"]
    if first == "soft" and khz not in SOFT_KHZ:
        lacks("tsc-rate", f"the software CPU has no clock of {khz} kHz, as KVM has here")
    vm = make(
        kernel=kernels()["linux-6.1-cloud"],
        initramfs=initramfs(),
        cmdline=vmlet.default_cmdline("soft"),
        engine=first,
        cpu=cpu,
        tsc_khz=khz if first == "soft" else None,
    )
    vm.start()
    vm.console.expect("# ", timeout=limit(60))
    vm.console.write("echo before-$((40 + 2)); read answer; echo got-$answer\n")
    vm.console.expect("before-42", timeout=limit(20))
    vm.pause()
    saved = vm._save()
    vm.close()
    with vmlet.VM._restore(saved, engine=second) as moved:
        assert moved.engine == second
        moved.start()
        moved.console.write("moved\n")
        moved.console.expect("got-moved", timeout=limit(30))
        # Time goes on too: a timer's interrupt ends the sleep.
        moved.console.write("sleep 0.2; echo slept-$((60 + 6))\n")
        moved.console.expect("slept-66", timeout=limit(30))
        moved.console.write("poweroff -f\n")
        assert moved.wait(timeout=limit(30)).kind == "poweroff"
