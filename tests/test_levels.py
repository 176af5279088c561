"""The levels of the x86-64 psABI: guests see the same everywhere, and a VM of one can move.

``tests/data`` has what `cpuid` and `rdmsr` are to answer, which the tiny guests read too
(``levels.rs``), and VMs that were saved in the labs. They are made by this file, run as a program
there: ``ci/lab amd --out FOLDER -- python tests/test_levels.py amd``, then the same with ``intel``.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vmlet
from conftest import Engine, initramfs, kernels, limit
from guests import ECHOES, guest

Make = Callable[..., vmlet.VM]

HERE = Path(__file__).parent
LEVELS = ("x86-64-v1", "x86-64-v2", "x86-64-v3")
#: What the software CPU has not got of the second level.
BEYOND = ("pni", "ssse3", "sse4_1", "sse4_2", "popcnt")
#: The rate of the recorded leaves 0x15 and 0x16.
KHZ = 2_000_000
ROWS = 0x20_0000


def recorded(level: str) -> list[tuple[int, ...]]:
    """Leaf, subleaf and the four registers, a row a question."""
    lines = (HERE / "data" / f"cpuid-{level}.txt").read_text().splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    return [tuple(int(word, 16) for word in row) for row in rows]


def asks(questions: list[tuple[int, int]]) -> bytes:
    """A guest that answers ``questions`` from `ROWS` on, four words each."""
    listed = "\n".join(f".long {leaf}, {subleaf}" for leaf, subleaf in questions)
    return guest(f"""
    mov $ROWS, %edi
    mov $(questions - first + 0x100000), %esi
1:  mov (%esi), %eax
    mov 4(%esi), %ecx
    cpuid
    mov %eax, (%edi)
    mov %ebx, 4(%edi)
    mov %ecx, 8(%edi)
    mov %edx, 12(%edi)
    add $16, %edi
    add $8, %esi
    cmp $(ROWS + {16 * len(questions)}), %edi
    jne 1b
    poweroff
    spin
questions:
{listed}
.set ROWS, {ROWS}
""")


def at_rate(row: tuple[int, ...], khz: int) -> tuple[int, ...]:
    """A recorded row as it is where the counter runs at ``khz``; leaf 0x15 is looked at apart."""
    mhz = KHZ // 1000
    if row[2:] == (mhz, mhz, 100, 0):
        return (*row[:2], khz // 1000, khz // 1000, 100, 0)
    return row


def obstacles(level: str, engine: str) -> tuple[str, ...]:
    """The features because of which ``engine`` does not carry ``level`` here."""
    found = vmlet.capabilities()["cpu_models"][level][engine]
    return tuple(found["unmasked"] or found["missing"])


@pytest.mark.engines
@pytest.mark.parametrize("level", LEVELS)
def test_cpuid_of_a_level_is_the_recorded_one_or_the_level_is_refused_by_its_features(
    make: Make, engine: Engine, level: str
) -> None:
    rows = recorded(level)
    khz = KHZ if engine == "soft" else vmlet.capabilities()["tsc_khz"]
    settings: dict[str, Any] = {"memory": "8M", "cpus": 2, "cpu": level}
    settings |= {"kernel": asks([(row[0], row[1]) for row in rows])}
    settings |= {"tsc_khz": KHZ} if engine == "soft" else {}
    if features := obstacles(level, engine):
        with pytest.raises(vmlet.UnsupportedError) as caught:
            make(**settings)
        assert caught.value.features == features
        assert all(name in caught.value.message for name in features)
        return
    vm = make(**settings)
    assert vm.run(timeout=limit(10)).kind == "poweroff"
    answers = struct.iter_unpack("<4I", vm.memory[ROWS : ROWS + 16 * len(rows)])
    for row, answer in zip(rows, answers, strict=True):
        if row[0] == 0x15:
            denominator, numerator, crystal, _ = answer
            assert abs(crystal // 1000 * numerator // denominator - khz) <= 25
        else:
            assert (*row[:2], *answer) == at_rate(row, khz)


def test_the_software_cpu_names_what_it_lacks_of_the_second_level(make: Make) -> None:
    with pytest.raises(vmlet.UnsupportedError) as caught:
        make(kernel=guest("spin"), memory="4M", engine="soft", cpu="x86-64-v2")
    assert caught.value.features == BEYOND
    assert ", ".join(BEYOND) in str(caught.value)
    assert "lower level" in str(caught.value.remedy)


@pytest.mark.kvm
def test_a_kvm_that_ignores_models_is_named_and_runs_no_guest_of_one(make: Make) -> None:
    probe = vmlet.capabilities()
    models = probe["cpu_models"]
    if probe["runs_kernels"]:
        assert not any(found["kvm"]["unmasked"] for found in models.values())
        return
    shown = models["x86-64-v1"]["kvm"]["unmasked"]
    assert shown
    for cpu in ("x86-64-v1", "soft-v1"):
        with pytest.raises(vmlet.UnsupportedError, match="ignores CPU models") as caught:
            make(kernel=guest("spin"), memory="4M", engine="kvm", cpu=cpu)
        assert caught.value.features == tuple(shown)
        assert 'engine="soft"' in str(caught.value.remedy)


def test_an_unknown_model_is_refused_with_those_there_are(make: Make) -> None:
    with pytest.raises(vmlet.ConfigError) as caught:
        make(kernel=guest("spin"), memory="4M", cpu="x86-64-v9")
    for name in ("host", "soft-v1", *LEVELS):
        assert f'"{name}"' in str(caught.value)


def test_more_memory_than_a_level_can_address_is_refused(make: Make) -> None:
    with pytest.raises(vmlet.ConfigError, match="addresses of 36 bits"):
        make(kernel=guest("spin"), memory="64G", cpu="x86-64-v1")


@pytest.mark.linux
@pytest.mark.engines
def test_debian_sees_the_level_and_misses_no_register(make: Make, engine: Engine) -> None:
    vm = make(kernel=kernels()["linux-6.1-cloud"], initramfs=initramfs(), cpu="x86-64-v1")
    vm.start()
    vm.console.expect("# ", timeout=limit(90))
    vm.console.write("grep -m2 -E '^(flags|model name)' /proc/cpuinfo; echo said-$((40 + 2))\n")
    said = vm.console.expect(re.compile(rb"(?s).*said-42"), timeout=limit(20))[0].decode()
    assert "vmlet x86-64-v1" in said
    flags = set(said.rpartition("flags")[2].split())
    assert {"sse2", "syscall", "nx", "lm", "hypervisor"} <= flags
    assert not {"popcnt", "cx16", "avx", "arch_capabilities", "nonstop_tsc"} & flags
    # The kernel touches no register that the level lacks without being ready for it.
    vm.console.write("dmesg | grep -c 'unchecked MSR'; echo counted-$((50 + 5))\n")
    counted = vm.console.expect(re.compile(rb"(?s).*counted-55"), timeout=limit(20))[0]
    assert b"\n0\r\n" in counted


def head_of(saved: bytes) -> tuple[dict[str, Any], int]:
    """The head of a saved VM, and where it ends."""
    (length,) = struct.unpack_from("<Q", saved, 12)
    return json.loads(saved[20 : 20 + length]), 20 + length


def without_rate(saved: bytes) -> bytes:
    """``saved`` as if it did not say its rate: the labs' clocks differ, and no processor there can
    scale."""
    head, end = head_of(saved)
    for vcpu in head["vcpus"]:
        vcpu["tsc_khz"] = 0
    text = json.dumps(head).encode()
    body = saved[:12] + struct.pack("<Q", len(text)) + text + saved[end:-4]
    return body + struct.pack("<I", zlib.crc32(body))


def echoing(make: Make, cpu: str, engine: Engine) -> bytes:
    """A VM that has echoed a byte, saved."""
    vm = make(kernel=guest(ECHOES), memory="4M", cpu=cpu, engine=engine)
    vm.start()
    vm.console.write("a")
    vm.console.expect("b", timeout=limit(10))
    vm.pause()
    saved = vm._save()
    vm.close()
    return saved


def kept(place: str, cpu: str) -> bytes:
    """The VM that was saved in ``place``."""
    return gzip.decompress((HERE / "data" / f"saved-{place}-{cpu}.gz").read_bytes())


@pytest.mark.engines
@pytest.mark.parametrize("place", ["amd", "intel", "soft"])
def test_a_vm_of_the_first_level_goes_on_wherever_it_was_saved(
    make: Make, engine: Engine, place: str
) -> None:
    level = "x86-64-v1"
    saved = echoing(make, level, "soft") if place == "soft" else kept(place, level)
    saved = without_rate(saved)
    if features := obstacles(level, engine):
        with pytest.raises(vmlet.UnsupportedError) as caught:
            vmlet.VM._restore(saved, engine=engine)
        assert caught.value.features == features
        return
    with vmlet.VM._restore(saved, engine=engine) as vm:
        before = vm.memory[0x20_0000:0x20_0004]
        vm.start()
        vm.console.write("x")
        vm.console.expect("y", timeout=limit(10))
        vm.pause()
        assert vm.memory[0x20_0000:0x20_0004] != before
        # The level stays what it was.
        assert head_of(vm._save())[0]["cpu"] == level


@pytest.mark.parametrize(("place", "feature"), [("amd", "sse4a"), ("intel", "avx2")])
def test_a_vm_of_a_whole_processor_is_refused_elsewhere_by_its_features(
    place: str, feature: str
) -> None:
    saved = without_rate(kept(place, "host"))
    with pytest.raises(vmlet.UnsupportedError) as caught:
        vmlet.VM._restore(saved, engine="soft")
    assert feature in caught.value.features
    assert feature in caught.value.message


@pytest.mark.kvm_linux
def test_a_vm_of_one_vendors_processor_is_refused_by_the_other_vendors() -> None:
    # Lab AMD's processor has all features of lab Intel's, and other registers.
    vendor = vmlet.capabilities()["vendor"]
    place = "amd" if vendor == "GenuineIntel" else "intel"
    with pytest.raises(vmlet.UnsupportedError) as caught:
        vmlet.VM._restore(without_rate(kept(place, "host")), engine="kvm")
    assert caught.value.features


def save_here(place: str) -> None:
    """Saves the VMs of ``tests/data`` on this machine's KVM."""
    folder = Path(os.environ["VMLET_OUT"])
    for cpu in ("x86-64-v1", "host"):
        saved = echoing(vmlet.VM, cpu, "kvm")
        (folder / f"saved-{place}-{cpu}.gz").write_bytes(gzip.compress(saved, mtime=0))


if __name__ == "__main__":
    save_here(sys.argv[1])
