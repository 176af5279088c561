"""Unmodified Debian kernels, to a shell and to their end."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator

import pytest

import conftest
import vmlet
from conftest import default_engine, initramfs, kernels, limit, short

pytestmark = pytest.mark.linux

KERNELS = ("linux-6.1-cloud", "linux-6.12-cloud")
CPUS = (1, 2)
PROTOCOLS = ("linux64", "pvh", "bzimage")
MEMORY = ("256M", "2G")
ALL = list(itertools.product(KERNELS, CPUS, PROTOCOLS, MEMORY))

#: Every pair of values of two settings stands in one of these.
PAIRWISE = [
    ("linux-6.1-cloud", 1, "linux64", "256M"),
    ("linux-6.12-cloud", 2, "linux64", "2G"),
    ("linux-6.1-cloud", 2, "pvh", "2G"),
    ("linux-6.12-cloud", 1, "pvh", "256M"),
    ("linux-6.1-cloud", 2, "bzimage", "256M"),
    ("linux-6.12-cloud", 1, "bzimage", "2G"),
]
CASES = ALL if os.environ.get("VMLET_FULL_PRODUCT") else PAIRWISE
PROMPT = b"# "


def shell(vm: vmlet.VM) -> None:
    """Starts ``vm`` and waits for its shell."""
    vm.start()
    vm.console.expect(PROMPT, timeout=limit(30))


def command(vm: vmlet.VM, line: str) -> str:
    """What ``line`` prints in the shell of ``vm``."""
    said = conftest.command(vm, line, timeout=10)
    vm.console.expect(PROMPT, timeout=limit(5))
    return said


def test_pairwise_cases_hold_every_pair_of_values() -> None:
    for first, second in itertools.combinations(range(4), 2):
        wanted = {(case[first], case[second]) for case in ALL}
        assert {(case[first], case[second]) for case in PAIRWISE} == wanted


@pytest.mark.parametrize(("kernel", "cpus", "protocol", "memory"), CASES)
def test_debian_reaches_a_shell_that_takes_commands_and_powers_off(
    make: Callable[..., vmlet.VM], kernel: str, cpus: int, protocol: str, memory: str
) -> None:
    vm = make(
        kernel=kernels()[kernel],
        initramfs=initramfs(),
        cpus=cpus,
        protocol=protocol,
        memory=memory,
    )
    shell(vm)
    version = kernel.split("-")[1]
    assert f" {version}." in command(vm, "uname -a")
    assert command(vm, "nproc") == str(cpus)
    total = int(command(vm, "grep MemTotal /proc/meminfo | tr -dc 0-9"))
    asked = vmlet.parse_size(memory) // 1024
    assert 0.75 * asked < total < asked
    vm.console.write("poweroff -f\n")
    assert vm.wait(timeout=limit(10)).kind == "poweroff"


@pytest.fixture(scope="module")
def linux() -> Iterator[vmlet.VM]:
    """A Linux with a shell, for tests that leave it as it was."""
    engine = default_engine()
    with vmlet.VM(
        kernel=kernels()["linux-6.1-cloud"],
        initramfs=initramfs(),
        cpus=2,
        cmdline=short(vmlet.default_cmdline(engine)),
        engine=engine,
    ) as vm:
        shell(vm)
        yield vm


def test_memory_and_registers_of_a_running_linux_are_read(linux: vmlet.VM) -> None:
    linux.pause()
    regs, sregs = linux.vcpus[0].regs, linux.vcpus[0].sregs
    assert sregs.efer & 0x500 == 0x500
    assert regs.rip >> 47 in (0, 0x1FFFF)
    banner = linux.memory[0x1000000 : 0x1000000 + (32 << 20)].find(b"Linux version 6.1.")
    assert banner > 0
    linux.resume()
    assert command(linux, "echo still-here") == "still-here"


def test_translate_agrees_with_the_guests_own_view(linux: vmlet.VM) -> None:
    text = command(linux, "grep -m1 ' _text$' /proc/kallsyms").split()[0]
    # Linux maps its text at a fixed distance from its load address of 16 MiB.
    assert linux.translate(int(text, 16)) == 0x1000000
    with pytest.raises(vmlet.GuestError):
        linux.translate(0xFFFF_8000_0000_0000 - 0x1000)


def test_pause_in_the_middle_of_output_loses_nothing(linux: vmlet.VM) -> None:
    linux.console.write("seq 1 400; echo all-$((2+1))\n")
    linux.console.expect(b"200\r\n", timeout=limit(10))
    linux.pause()
    linux.resume()
    rest = linux.console.expect(re.compile(rb"(.*)all-3", re.DOTALL), timeout=limit(10))[1]
    assert [int(n) for n in rest.split()] == list(range(201, 401))
    linux.console.expect(PROMPT, timeout=limit(5))


def test_long_input_arrives_whole(linux: vmlet.VM) -> None:
    text = "x" * 3000
    linux.console.write("stty -icanon -echo; head -c 3000 | md5sum; stty icanon echo\n")
    linux.console.expect(b"\n", timeout=limit(5))
    import hashlib
    import time

    time.sleep(limit(0.2))
    linux.console.write(text)
    digest = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest().encode()
    linux.console.expect(digest, timeout=limit(10))
    linux.console.expect(PROMPT, timeout=limit(5))


def test_reboot_is_a_reset(make: Callable[..., vmlet.VM]) -> None:
    vm = make(
        kernel=kernels()["linux-6.1-cloud"],
        initramfs=initramfs(),
        cmdline=short(vmlet.default_cmdline(default_engine()).replace("reboot=t", "reboot=a")),
    )
    shell(vm)
    vm.console.write("reboot -f\n")
    event = vm.wait(timeout=limit(10))
    assert (event.kind, event.source) == ("reset", "cf9")


def test_a_panic_without_a_driver_is_seen_on_the_console(make: Callable[..., vmlet.VM]) -> None:
    vm = make(kernel=kernels()["linux-6.1-cloud"], initramfs=initramfs())
    shell(vm)
    vm.console.write("echo c > /proc/sysrq-trigger\n")
    event = vm.wait(timeout=limit(10))
    assert (event.kind, event.source) == ("panic", "console")
    assert "sysrq triggered crash" in event.detail


def test_a_panic_that_stays_put_ends_the_run_too(make: Callable[..., vmlet.VM]) -> None:
    vm = make(
        kernel=kernels()["linux-6.1-cloud"],
        initramfs=initramfs("echo c > /proc/sysrq-trigger"),
        cmdline=short(vmlet.default_cmdline(default_engine()).replace("panic=-1", "panic=0")),
    )
    assert vm.run(timeout=limit(20)).kind == "panic"


def test_a_panic_with_the_driver_loaded_comes_from_pvpanic(
    make: Callable[..., vmlet.VM],
) -> None:
    name = "linux-6.1-cloud"
    image = initramfs(modules=("pvpanic-mmio",), kernel=name)
    vm = make(kernel=kernels()[name], initramfs=image)
    shell(vm)
    vm.console.write("echo c > /proc/sysrq-trigger\n")
    event = vm.wait(timeout=limit(10))
    assert (event.kind, event.source) == ("panic", "pvpanic")
    assert "sysrq triggered crash" in event.detail


def test_two_linuxes_run_side_by_side(make: Callable[..., vmlet.VM]) -> None:
    vms = [make(kernel=kernels()[kernel], initramfs=initramfs()) for kernel in KERNELS]
    for vm in vms:
        vm.start()
    for vm, kernel in zip(vms, KERNELS, strict=True):
        vm.console.expect(PROMPT, timeout=limit(30))
        assert f" {kernel.split('-')[1]}." in command(vm, "uname -a")


def test_a_stand_alone_bzimage_starts_at_its_32_bit_entry(make: Callable[..., vmlet.VM]) -> None:
    vm = make(kernel=kernels()["bzimage32"], cmdline="console=ttyS0,115200", memory="64M")
    vm.start()
    vm.console.expect("Memtest86+", timeout=limit(10))


# The shim sets the page attribute table unasked, which the software CPU's model does not have.
@pytest.mark.kvm_linux
def test_a_pvh_elf_in_a_32_bit_container_starts_with_its_module(
    make: Callable[..., vmlet.VM],
) -> None:
    # The shim finds its start information and module, then misses the hypervisor it is made for:
    # it says so on the debug port, its only output that early.
    vm = make(
        kernel=kernels()["pvh32"],
        modules=[kernels()["pvh32-module"]],
        protocol="pvh",
        debug_port=True,
    )
    vm.start()
    first = vm.console.expect("\n", timeout=limit(10)).string
    assert first.startswith(b"(XEN) Xen BUG at arch/x86/guest/xen/pvh-boot.c")
    vm.console.expect("Xen-4.", timeout=limit(10))
