"""The balloon: Debian's kernels give memory back to the host, and get it again."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import vmlet
import vmlet.aio
from conftest import (
    Engine,
    Shared,
    command,
    default_engine,
    initramfs,
    kernels,
    limit,
    short,
    until,
)
from guests import guest

pytestmark = pytest.mark.linux

Make = Callable[..., vmlet.VM]

KERNEL = "linux-6.12-cloud"
MODULES = ("virtio_pci", "virtio_balloon")
MIB = 1 << 20
#: Gives the host's memory for this much to the guest, whose kernel has it free afterwards.
USED = 96 * MIB
USE = "dd if=/dev/zero of=/t/a bs=1M count=96 2>/dev/null"
FILL = f"{USE}; rm /t/a"
PREPARE = "mkdir -p /t; mount -t tmpfs -o size=100% none /t"


def booted(make: Make, *devices: vmlet.devices.Model, **settings: object) -> vmlet.VM:
    """A shell in a guest with the balloon's driver and a file system in memory."""
    cmdline = short(f"{vmlet.default_cmdline(default_engine())} quiet loglevel=1")
    files = initramfs(PREPARE, modules=MODULES, kernel=KERNEL)
    settings = {"cmdline": cmdline, "memory": "256M", **settings}
    vm = make(kernel=kernels()[KERNEL], initramfs=files, devices=devices, **settings)
    vm.start()
    vm.console.expect("# ", timeout=limit(60))
    return vm


def resident() -> int:
    """Bytes of memory that this process has."""
    text = Path("/proc/self/smaps_rollup").read_text()
    found = re.search(r"^Rss: +(\d+) kB", text, re.MULTILINE)
    assert found
    return int(found[1]) << 10


def inflated(vm: vmlet.VM, size: int) -> None:
    vm.balloon.target = size
    until(lambda: vm.balloon.size == size)


def silent(shared: Shared, engine: Engine) -> vmlet.VM:
    """A guest that says nothing of pages it does not use."""
    device = vmlet.Balloon(reporting=False)
    return shared(engine, lambda: booted(vmlet.VM, device, engine=engine))


@pytest.mark.engines
def test_memory_goes_back_to_the_host_and_comes_again(shared: Shared, engine: Engine) -> None:
    vm = silent(shared, engine)
    command(vm, FILL)
    assert (vm.balloon.has_driver, vm.balloon.size) == (True, 0)
    before, full = vm.balloon.statistics(limit(10)), resident()
    vm.balloon.target = "96M"
    # A pause in the middle of it.
    while vm.balloon.size < USED:
        vm.pause()
        assert vm.balloon.target == USED
        vm.resume()
        time.sleep(0.01)
    until(lambda: vm.balloon.size == USED)
    assert vm.balloon.given_back + vm.balloon.kept >= USED
    assert resident() < full - USED * 3 // 4
    after = vm.balloon.statistics(limit(10))
    assert before["free_memory"] - after["free_memory"] > USED // 2
    assert after["total_memory"] <= 256 * MIB
    # The guest uses it again.
    inflated(vm, 0)
    assert (
        command(
            vm,
            "dd if=/dev/urandom of=/t/a bs=1M count=8 2>/dev/null; cp /t/a /t/b; "
            "cmp /t/a /t/b && echo same",
        )
        == "same"
    )
    command(vm, FILL)
    assert resident() > full - USED // 2


@pytest.mark.engines
def test_a_guest_reports_pages_that_it_does_not_use(make: Make, engine: Engine) -> None:
    vm = booted(make, vmlet.Balloon())
    command(vm, USE)
    full = resident()
    # The guest reports two seconds after, which a slow host may be here by.
    command(vm, "rm /t/a")
    until(lambda: resident() < full - USED // 2)
    assert vm.balloon.given_back >= USED // 2
    command(vm, USE)
    assert resident() > full - USED // 2
    assert vm.balloon.size == 0


def test_a_guest_short_of_memory_takes_it_back_before_it_kills(make: Make) -> None:
    vm = booted(make, vmlet.Balloon(target="96M"))
    until(lambda: vm.balloon.size == USED)
    assert command(vm, "dd if=/dev/zero of=/t/a bs=1M count=96 2>/dev/null && echo done") == "done"
    assert vm.balloon.size < USED


def test_memory_that_a_view_holds_is_kept_and_stays_as_it_is(shared: Shared) -> None:
    vm = silent(shared, default_engine())
    given, kept = vm.balloon.given_back, vm.balloon.kept
    with memoryview(vm.memory.view(0, 256 * MIB)) as view:
        inflated(vm, 32 * MIB)
        assert (vm.balloon.given_back, len(view)) == (given, 256 * MIB)
        assert vm.balloon.kept >= kept + 32 * MIB
    inflated(vm, 0)


@pytest.mark.interpreted
def test_a_saved_vm_goes_on_with_its_balloon(make: Make) -> None:
    vm = booted(make, vmlet.Balloon(reporting=False), cpu="soft-v1", engine="soft")
    inflated(vm, 32 * MIB)
    vm.pause()
    saved = vm._save()
    vm.close()
    with vmlet.VM._restore(saved, engine="soft", devices=[vmlet.Balloon()]) as again:
        assert (again.balloon.target, again.balloon.size) == (32 * MIB, 32 * MIB)
        again.start()
        assert again.balloon.statistics(limit(20))["free_memory"] > 0
        inflated(again, 48 * MIB)


def test_a_guest_without_a_driver_is_a_timeout_with_a_remedy(make: Make) -> None:
    vm = make(kernel=guest("spin"), devices=[vmlet.Balloon()])
    vm.balloon.target = "1M"
    state = (vm.balloon.target, vm.balloon.size, vm.balloon.has_driver)
    assert state == (MIB, 0, False)
    with pytest.raises(vmlet.TimeoutError, match="no figures") as caught:
        vm.balloon.statistics(timeout=0.05)
    assert "virtio_balloon" in str(caught.value.remedy)

    async def ask() -> None:
        await vmlet.aio.Ballooning(vm.balloon).statistics(timeout=0.05)

    with pytest.raises(vmlet.TimeoutError):
        asyncio.run(ask())


@pytest.mark.parametrize("target", ["257M", 1 << 63, 1 << 64, -1, True, 1.5, None, "much"])
def test_targets_that_cannot_be_are_refused(make: Make, target: int) -> None:
    files = {"kernel": guest("spin"), "memory": "256M"}
    with pytest.raises(vmlet.ConfigError):
        make(devices=[vmlet.Balloon(target=target)], **files)
    vm = make(devices=[vmlet.Balloon()], **files)
    with pytest.raises(vmlet.ConfigError):
        vm.balloon.target = target
    assert vm.balloon.target == 0


def test_settings_that_cannot_be_are_refused(make: Make) -> None:
    for settings in ({"deflate_on_oom": 1}, {"reporting": "yes"}):
        with pytest.raises(vmlet.ConfigError, match="True or False"):
            vmlet.Balloon(**settings)
    with pytest.raises(vmlet.ConfigError, match="second"):
        make(kernel=guest("spin"), devices=[vmlet.Balloon(), vmlet.Balloon()])


@pytest.mark.interpreted
def test_a_recorded_run_replays_with_its_balloon(make: Make, tmp_path: Path) -> None:
    script = f"{PREPARE}; read line; cat /proc/vmstat | md5sum; poweroff -f"
    settings = {
        "kernel": kernels()[KERNEL],
        "initramfs": initramfs(script, modules=MODULES, kernel=KERNEL),
        "cmdline": f"{vmlet.default_cmdline('soft')} quiet loglevel=1",
        "devices": [vmlet.Balloon(reporting=False)],
    }
    vm = make(clock="icount", engine="soft", **settings)
    vm.record(tmp_path / "run.rec")
    vm.balloon.target = "8M"
    vm.start()
    until(lambda: vm.balloon.size == 8 * MIB)
    inflated(vm, 24 * MIB)
    assert vm.balloon.statistics(limit(20))["free_memory"] > 0
    vm.console.write("\n")
    assert vm.wait(timeout=limit(60)).kind == "poweroff"
    end = (vm.instructions, vm.state_hash(), vm.console.read())
    vm.close()
    with vmlet.VM.replay(tmp_path / "run.rec", engine="soft", **settings) as again:
        with pytest.raises(vmlet.StateError, match="record alone"):
            again.balloon.target = 0
        assert again.run(timeout=limit(120)).kind == "poweroff"
        assert (again.instructions, again.state_hash(), again.console.read()) == end
