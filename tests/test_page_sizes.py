"""`Memory.page_sizes`, huge pages, prefault and statistics.

Slots that are misaligned on purpose are in the tiny guests: the RAM of a `VM` is always aligned.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vmlet
from conftest import limit
from guests import guest

pytestmark = pytest.mark.kvm

KIB4, MIB2, GIB1 = 4096, 2 << 20, 1 << 30
POOLS = Path("/sys/kernel/mm/hugepages")
MIB = 1 << 20

#: Writes a byte in each page from 16 to 24 MiB, says so, and does it again for each byte of input.
TOUCHES = """
1:  mov $0x1000000, %ebx
2:  movb $1, (%ebx)
    add $0x1000, %ebx
    cmp $0x1800000, %ebx
    jb 2b
    putc '.'
3:  mov $COM1 + 5, %dx
    in %dx, %al
    test $1, %al
    jz 3b
    mov $COM1, %dx
    in %dx, %al
    jmp 1b
"""


def touched(vm: vmlet.VM) -> vmlet.VM:
    """``vm``, whose guest has touched its pages once more and stands still."""
    if vm.state == "created":
        vm.start()
    else:
        vm.console.write(b"x")
        vm.resume()
    vm.console.expect(b".", timeout=limit(10))
    vm.pause()
    return vm


def number(size: int, name: str) -> int:
    return int((POOLS / f"hugepages-{size >> 10}kB" / name).read_text())


@pytest.fixture
def gibibyte() -> Iterator[None]:
    """A free page of 1 GiB in the host's pool.

    Where there is none, root makes one if VMLET_REQUIRE has hugetlb; else the test is skipped.
    """
    pool = POOLS / f"hugepages-{GIB1 >> 10}kB" / "nr_hugepages"
    if pool.exists() and number(GIB1, "free_hugepages") > number(GIB1, "resv_hugepages"):
        yield
        return
    if "hugetlb" not in os.environ.get("VMLET_REQUIRE", "").split(","):
        pytest.skip("needs hugetlb: the host's pool has no free page of 1 GiB")
    before = int(pool.read_text())
    # A gibibyte in one piece is easier to find without the page cache.
    Path("/proc/sys/vm/drop_caches").write_text("3")
    pool.write_text(str(before + 1))
    yield
    vmlet._core.drain()
    pool.write_text(str(before))


def transparent() -> bool:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return setting.exists() and "[never]" not in setting.read_text()


def test_a_new_vm_can_be_mapped_in_two_mebibyte_pages(make: Callable[..., vmlet.VM]) -> None:
    found = make(kernel=guest("hlt"), memory="64M").memory.page_sizes()
    (slot,) = found.slots
    assert slot.achievable == {GIB1: 0, MIB2: 32, KIB4: 0}
    assert (slot.gpa, slot.length, slot.backing, slot.limit) == (0, 64 * MIB, MIB2, "backing")
    assert slot.hva % MIB2 == 0
    assert found.achieved is not None
    assert any("not mapped" in reason for reason in found.reasons)
    assert "32 x 2 MiB" in str(found)


def test_memory_that_ends_inside_a_page_is_cut_there(make: Callable[..., vmlet.VM]) -> None:
    found = make(kernel=guest("hlt"), memory=3 * MIB).memory.page_sizes()
    assert found.slots[0].achievable == {GIB1: 0, MIB2: 1, KIB4: 256}
    assert any("hole" in reason for reason in found.reasons)


@pytest.mark.kvm_linux
def test_touched_memory_is_mapped_in_two_mebibyte_pages(make: Callable[..., vmlet.VM]) -> None:
    vm = touched(make(kernel=guest(TOUCHES), memory="64M"))
    achieved = vm.memory.page_sizes().achieved
    assert achieved is not None
    if transparent():
        assert achieved[MIB2] >= 4
    assert achieved[GIB1] == 0
    assert vm.stats()["pages_2m"] == achieved[MIB2]


@pytest.mark.kvm_linux
def test_under_the_dirty_log_memory_is_mapped_in_small_pages(make: Callable[..., vmlet.VM]) -> None:
    vm = touched(make(kernel=guest(TOUCHES), memory="64M"))
    vm.memory.dirty()
    touched(vm)
    found = vm.memory.page_sizes()
    (slot,) = found.slots
    assert (slot.limit, slot.achievable) == ("dirty log", {GIB1: 0, MIB2: 0, KIB4: 16384})
    assert found.achieved is not None
    assert found.achieved[KIB4] >= 2048
    assert any("dirty log" in reason for reason in found.reasons)
    dirty = {address for start, length in vm.memory.dirty() for address in (start, start + length)}
    assert 0x100_0000 in dirty


def test_a_pool_too_small_says_how_many_pages_and_which_file(make: Callable[..., vmlet.VM]) -> None:
    available = number(MIB2, "free_hugepages") - number(MIB2, "resv_hugepages")
    wanted = number(MIB2, "nr_hugepages") + 1
    with pytest.raises(vmlet.HostError) as caught:
        make(kernel=guest("hlt"), memory=(available + 1) * MIB2, ram="hugetlb:2M")
    message, remedy = str(caught.value).split("\n")
    assert message.startswith(f"{available + 1} huge pages of 2 MiB are needed and {available} of")
    assert remedy.startswith(f"Write {wanted} to /sys/kernel/mm/hugepages/hugepages-2048kB/nr_")
    assert caught.value.errno == 12


@pytest.mark.parametrize("ram", ["hugetlb", "hugetlb:", "hugetlb:3M", "hugetlb:x", "huge", 7, None])
def test_a_backing_that_does_not_exist_is_refused(make: Callable[..., vmlet.VM], ram: str) -> None:
    with pytest.raises((vmlet.ConfigError, TypeError)):
        make(kernel=guest("hlt"), ram=ram)


def test_a_page_size_the_host_lacks_is_refused_with_those_it_has(
    make: Callable[..., vmlet.VM],
) -> None:
    with pytest.raises(vmlet.HostError, match="no huge pages of 256 MiB"):
        make(kernel=guest("hlt"), memory="256M", ram="hugetlb:256M")


def test_memory_that_is_no_multiple_of_the_page_is_refused(make: Callable[..., vmlet.VM]) -> None:
    with pytest.raises(vmlet.ConfigError, match="not a multiple of 2 MiB"):
        make(kernel=guest("hlt"), memory="3M", ram="hugetlb:2M")


@pytest.mark.kvm_linux
def test_a_gibibyte_page_at_address_0_is_mapped_as_one(
    make: Callable[..., vmlet.VM], gibibyte: None
) -> None:
    vm = touched(make(kernel=guest(TOUCHES), memory="1G", ram="hugetlb:1G"))
    found = vm.memory.page_sizes()
    assert found.slots[0].achievable == {GIB1: 1, MIB2: 0, KIB4: 0}
    assert (found.slots[0].limit, found.slots[0].hva % GIB1) == ("none", 0)
    assert found.achieved is not None
    assert found.achieved[GIB1] == 1, str(found)
    vm.close()


def test_prefaulted_memory_is_there_at_once(make: Callable[..., vmlet.VM]) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    lazy = make(kernel=guest("hlt"), memory="64M")
    assert resident() - before < 32 * MIB
    lazy.close()
    before = resident()
    make(kernel=guest("hlt"), memory="64M", prefault=True)
    assert resident() - before > 60 * MIB


def test_statistics_have_kvms_names(make: Callable[..., vmlet.VM]) -> None:
    vm = make(kernel=guest("putc 'x'\npoweroff"), memory="16M")
    vm.run(timeout=limit(5))
    found = vm.stats()
    assert {"pages_4k", "pages_2m", "pages_1g", "remote_tlb_flush"} <= found.keys()
    vcpu = vm.vcpus[0].stats()
    assert isinstance(vcpu["exits"], int)
    assert vcpu["exits"] > 0
    assert isinstance(vcpu["halt_wait_hist"], tuple)


def test_statistics_of_a_closed_vm_raise(make: Callable[..., vmlet.VM]) -> None:
    vm = make(kernel=guest("hlt"), memory="16M")
    vm.close()
    for ask in (vm.stats, vm.memory.page_sizes, vm.vcpus[0].stats, lambda: vm.walk(0)):
        with pytest.raises(vmlet.ClosedError):
            ask()
