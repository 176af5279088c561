"""Modules of L1 come in an order in which each finds what it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit import initrd
from labkit.errors import LabError
from labkit.modules import load_order, module_name

DEPENDENCIES = """\
kernel/arch/x86/kvm/kvm-intel.ko.xz: kernel/arch/x86/kvm/kvm.ko.xz kernel/virt/lib/irqbypass.ko.xz
kernel/arch/x86/kvm/kvm.ko.xz: kernel/virt/lib/irqbypass.ko.xz
kernel/virt/lib/irqbypass.ko.xz:
"""
KVM_INTEL = [
    "kernel/virt/lib/irqbypass.ko.xz",
    "kernel/arch/x86/kvm/kvm.ko.xz",
    "kernel/arch/x86/kvm/kvm-intel.ko.xz",
]


def test_dependencies_come_first_and_innermost_first() -> None:
    assert load_order(DEPENDENCIES, ("kvm-intel",)) == KVM_INTEL


def test_dashes_and_underscores_name_the_same_module() -> None:
    assert load_order(DEPENDENCIES, ("kvm_intel",)) == KVM_INTEL


def test_a_module_that_two_need_is_loaded_once() -> None:
    assert load_order(DEPENDENCIES, ("irqbypass", "kvm", "kvm-intel")) == KVM_INTEL


def test_what_the_kernel_has_built_in_is_not_loaded() -> None:
    assert load_order(DEPENDENCIES, ("ext4",), "kernel/fs/ext4/ext4.ko\n") == []


def test_a_module_that_is_nowhere_is_an_error() -> None:
    with pytest.raises(LabError, match="no module nonesuch"):
        load_order(DEPENDENCIES, ("nonesuch",))


def test_a_name_has_neither_folder_nor_compression() -> None:
    assert module_name("kernel/net/9p/9pnet-virtio.ko.xz") == "9pnet_virtio"


def test_options_come_with_their_module_and_with_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "modules.dep").write_text(DEPENDENCIES)
    (tmp_path / "modules.builtin").write_text("")
    monkeypatch.setattr(initrd, "read_stripped", lambda path: path.name.encode())
    image = initrd._pack(tmp_path, ("kvm", "kvm-intel ept=0 vpid=0"))
    assert image.count(b".options\0") == 1
    assert b"modules/002-kvm-intel.options\0" in image
    assert b"ept=0 vpid=0" in image
