"""A VM goes on where another engine takes it over."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest

import vmlet
from conftest import Engine, limit
from guests import ECHOES, guest

pytestmark = pytest.mark.usefixtures("nothing_left")

Make = Callable[..., vmlet.VM]


def _head(saved: bytes) -> tuple[dict[str, Any], int]:
    """The head of a saved VM, and where it ends."""
    (length,) = struct.unpack_from("<Q", saved, 12)
    return json.loads(saved[20 : 20 + length]), 20 + length


def _with_head(saved: bytes, head: dict[str, Any]) -> bytes:
    """``saved`` with another head, and its sum made anew."""
    text = json.dumps(head).encode()
    body = saved[:12] + struct.pack("<Q", len(text)) + text + saved[_head(saved)[1] : -4]
    return body + struct.pack("<I", zlib.crc32(body))


def _paused(make: Make, **settings: Any) -> bytes:
    """A small VM of the software CPU, saved."""
    vm = make(kernel=guest("spin"), memory="4M", engine="soft", **settings)
    vm.start()
    vm.pause()
    return vm._save()


@pytest.mark.engines
def test_a_saved_guest_goes_on_from_where_it_was(make: Make, engine: Engine) -> None:
    with make(kernel=guest(ECHOES), memory="8M", cpus=2) as vm:
        vm.start()
        vm.console.write("a")
        vm.console.expect("b", timeout=limit(10))
        vm.pause()
        count = vm.memory[0x200000:0x200004]
        regs = vm.vcpus[0].regs
        saved = vm._save()
    with vmlet.VM._restore(saved, engine=engine) as vm:
        assert (vm.state, vm.engine, len(vm.vcpus)) == ("created", engine, 2)
        assert vm.memory[0x200000:0x200004] == count
        assert vm.vcpus[0].regs == regs
        vm.start()
        vm.console.write("x")
        vm.console.expect("y", timeout=limit(10))


@pytest.mark.engines
def test_the_guests_clock_goes_on_from_what_it_was(make: Make, engine: Engine) -> None:
    vm = make(kernel=guest("spin"), memory="4M")
    vm.start()
    vm.pause()
    saved = vm._save()
    head, _ = _head(saved)
    assert 0 < head["clock"] < 10**12
    # Hours later than what a VM begins with.
    with vmlet.VM._restore(_with_head(saved, head | {"clock": 10**13}), engine=engine) as again:
        again.start()
        again.pause()
        assert 10**13 < _head(again._save())[0]["clock"] < 10**13 + 10**12


def test_a_state_the_software_cpu_lacks_is_refused_with_its_features_by_name(make: Make) -> None:
    saved = _paused(make)
    head, _ = _head(saved)
    for entry in head["vcpus"][0]["cpuid"]["entries"]:
        if entry["leaf"] == 1:
            entry["ecx"] |= 1 | 1 << 23
    with pytest.raises(vmlet.UnsupportedError, match=r"pni, popcnt"):
        vmlet.VM._restore(_with_head(saved, head), engine="soft")


@pytest.mark.kvm
def test_a_rate_of_the_time_stamp_counter_that_kvm_cannot_have_is_refused_with_both(
    make: Make,
) -> None:
    host = vmlet.capabilities()["tsc_khz"]
    wanted = 3_900_000 if host < 2_000_000 else 1_000_000
    said = ""
    try:
        vm = make(kernel=guest("spin"), memory="4M", engine="kvm", tsc_khz=wanted)
    except vmlet.UnsupportedError as error:
        said = str(error)
    if said:
        assert str(wanted) in said
        assert str(host) in said
        return
    # This processor scales the counter.
    vm.start()
    vm.pause()
    assert _head(vm._save())[0]["vcpus"][0]["tsc_khz"] == wanted


def test_the_software_cpu_has_any_rate_and_keeps_it(make: Make) -> None:
    saved = _paused(make, tsc_khz=2_445_431)
    moved = vmlet.VM._restore(saved, engine="soft")
    moved.start()
    moved.pause()
    head, _ = _head(moved._save())
    moved.close()
    assert head["vcpus"][0]["tsc_khz"] == 2_445_431


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"memory": 3}, "memory"),
        ({"memory": 1 << 62}, "memory"),
        ({"cpus": 0, "vcpus": []}, "cpus"),
        ({"cpus": 2}, "says it has 2"),
        ({"cpu": "imagined"}, "imagined"),
        ({"ports": [[0x60, {"kind": "x", "version": 1, "data": "1"}]]}, "no x at 0x60"),
        ({"mmio": [[0xFEC00000, {"kind": "I/O APIC", "version": 9, "data": ""}]]}, "version 9"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_head_that_no_vm_has_is_refused(make: Make, change: dict[str, Any], match: str) -> None:
    saved = _paused(make)
    head, _ = _head(saved)
    with pytest.raises(vmlet.Error, match=match):
        vmlet.VM._restore(_with_head(saved, head | change), engine="soft")


@pytest.mark.parametrize("end", [0, 7, 30, 5000, -1])
def test_a_truncated_saved_vm_is_refused_with_its_offset(make: Make, end: int) -> None:
    with pytest.raises(vmlet.ConfigError, match="damaged at byte"):
        vmlet.VM._restore(_paused(make)[:end], engine="soft")


def test_a_flipped_bit_anywhere_is_noticed(make: Make) -> None:
    saved = bytearray(_paused(make))
    for at in range(0, len(saved), len(saved) // 50):
        saved[at] ^= 0x10
        with pytest.raises(vmlet.ConfigError, match=r"damaged|version"):
            vmlet.VM._restore(bytes(saved), engine="soft")
        saved[at] ^= 0x10
    vmlet.VM._restore(bytes(saved), engine="soft").close()


def test_saving_needs_a_paused_vm(make: Make) -> None:
    vm = make(kernel=guest("spin"), memory="4M", engine="soft")
    vm.start()
    with pytest.raises(vmlet.StateError, match="paused"):
        vm._save()
