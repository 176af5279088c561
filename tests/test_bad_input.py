"""What cannot be: each refused by an exception of the tree, with its cause and remedy.

Nothing is left behind by a refusal: every test ends with what the process held before.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vmlet
from guests import elf, guest
from guests.images import arm64_image, bzimage, with_machine

pytestmark = pytest.mark.usefixtures("nothing_left")

AARCH64 = 183
GUEST = "poweroff; spin"


def refused(kind: type[vmlet.Error], **settings: Any) -> vmlet.Error:
    """The exception that making a VM ends with."""
    with pytest.raises(vmlet.Error) as caught:
        vmlet.VM(**settings)
    assert type(caught.value) is kind
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize(
    ("image", "said", "remedy"),
    [
        (b"", "is empty", "bzImage"),
        (b"\x7fELF", "truncated", "again"),
        (b"#!/bin/sh\n" + bytes(4096), "neither an ELF file nor a bzImage", "vmlinux"),
        (b"\0" * (1 << 20), "neither an ELF file nor a bzImage", "vmlinux"),
        (arm64_image(), "another architecture", "x86-64"),
    ],
    ids=["empty", "only a magic", "script", "zeros", "arm64 Image"],
)
def test_what_is_no_kernel_is_refused(image: bytes, said: str, remedy: str) -> None:
    error = refused(vmlet.KernelError, kernel=image)
    assert said in error.message
    assert remedy in str(error.remedy)


def test_an_error_while_another_is_handled_has_that_as_its_context() -> None:
    def fails_twice() -> None:
        try:
            raise LookupError("first")
        finally:
            vmlet.VM(kernel=b"no kernel")

    with pytest.raises(vmlet.KernelError) as caught:
        fails_twice()
    assert isinstance(caught.value.__context__, LookupError)
    assert refused(vmlet.KernelError, kernel=b"no kernel").__context__ is None


@pytest.mark.parametrize(("keep", "said"), [(10, "truncated"), (60, "truncated"), (-1, "no note")])
def test_a_truncated_elf_is_refused(keep: int, said: str) -> None:
    error = refused(vmlet.KernelError, kernel=guest(GUEST)[:keep])
    assert said in error.message


def test_an_elf_for_another_architecture_is_refused() -> None:
    error = refused(vmlet.KernelError, kernel=with_machine(guest(GUEST), AARCH64))
    assert "another architecture" in error.message
    assert "183" in error.message


def test_a_segment_outside_memory_is_refused() -> None:
    image = elf(b"\xf4", entry=0x4000_0000, load=0x4000_0000)
    error = refused(vmlet.KernelError, kernel=image, memory="64M")
    assert "0x40000000" in error.message
    assert "more memory" in str(error.remedy)


@pytest.mark.parametrize(
    ("payload", "name"),
    [(b"BZh91AY", "bzip2"), (b"\x5d\0\0\x80", "LZMA"), (b"\x89LZO\0", "LZO"), (b"??", "unknown")],
)
def test_an_unknown_compression_is_refused_by_name(payload: bytes, name: str) -> None:
    image = bzimage(payload + bytes(4096))
    error = refused(vmlet.KernelError, kernel=image, protocol="linux64")
    assert name in error.message
    assert "gzip, xz, lz4 or zstd" in str(error.remedy)


@pytest.mark.parametrize("magic", [b"\x1f\x8b\x08\0", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"])
def test_a_damaged_payload_is_refused(magic: bytes) -> None:
    error = refused(vmlet.KernelError, kernel=bzimage(magic + b"\xee" * 999), protocol="linux64")
    assert "payload is damaged" in error.message


def test_an_initramfs_larger_than_memory_is_refused() -> None:
    error = refused(vmlet.KernelError, kernel=guest(GUEST), initramfs=bytes(65 << 20), memory="64M")
    assert "does not fit" in error.message
    assert "more memory" in str(error.remedy)


@pytest.mark.parametrize(
    "memory", [0, 1, 4097, (1 << 20) - 4096, (64 << 20) + 1, 1 << 62, 1 << 63, 1 << 70]
)
def test_memory_that_cannot_be_is_refused(memory: int) -> None:
    assert (
        "memory cannot be" in refused(vmlet.ConfigError, kernel=guest(GUEST), memory=memory).message
    )


def test_more_memory_than_the_host_has_is_refused_with_what_it_has() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory = (total // 4096 + 1) * 4096 * 2
    error = refused(vmlet.ConfigError, kernel=guest(GUEST), memory=memory)
    assert "the host can give" in error.message
    assert "less memory" in str(error.remedy)


@pytest.mark.parametrize("memory", ["", "lots", "-1M", "1.5G", "1X", -4096, 1.5, None, True])
def test_a_size_that_is_none_is_refused(memory: object) -> None:
    assert (
        "a size cannot be" in refused(vmlet.ConfigError, kernel=guest(GUEST), memory=memory).message
    )


@pytest.mark.parametrize("cpus", [0, -1, 10_000, 1 << 40, 1.0, "2", True])
def test_a_number_of_vcpus_that_cannot_be_is_refused(cpus: object) -> None:
    assert "cpus cannot be" in refused(vmlet.ConfigError, kernel=guest(GUEST), cpus=cpus).message


def test_a_command_line_too_long_is_refused() -> None:
    error = refused(vmlet.KernelError, kernel=guest(GUEST), cmdline="x" * (1 << 20))
    assert "1048576 bytes" in error.message
    assert "Shorten" in str(error.remedy)


def test_a_command_line_with_a_nul_is_refused() -> None:
    error = refused(vmlet.KernelError, kernel=guest(GUEST), cmdline="quiet\0init=/x")
    assert "NUL" in error.message


@pytest.mark.parametrize(
    "setting",
    [
        {"engine": "fast"},
        {"protocol": "uefi"},
        {"ram": "paper"},
        {"console_limit": 0},
        {"console_limit": "all"},
        {"cmdline": 5},
        {"engine": None},
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_names_itself(setting: dict[str, object]) -> None:
    with pytest.raises(vmlet.ConfigError) as caught:
        vmlet.VM(kernel=guest(GUEST), **setting)  # type: ignore[arg-type]
    name = next(iter(setting))
    assert name in str(caught.value) or "size" in str(caught.value)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(TypeError, match="colour"):
        vmlet.VM(kernel=guest(GUEST), colour="blue")  # type: ignore[call-arg]


def test_modules_need_a_pvh_kernel() -> None:
    error = refused(
        vmlet.KernelError, kernel=bzimage(b"\0" * 4096), protocol="bzimage", modules=[b"x"]
    )
    assert "modules" in error.message


def test_files_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    missing = refused(vmlet.KernelError, kernel=tmp_path / "nothing")
    assert "No such file" in missing.message
    assert "Is a directory" in refused(vmlet.KernelError, kernel=tmp_path).message
    kernel = guest(GUEST)
    assert (
        "initramfs"
        in refused(vmlet.KernelError, kernel=kernel, initramfs=tmp_path / "nothing").message
    )


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """No descriptor more can be opened than are open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.open("/dev/null", os.O_RDONLY)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + 2, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.kvm
def test_a_lack_of_descriptors_is_a_host_error(few_descriptors: None) -> None:
    image = guest(GUEST)
    error = refused(vmlet.HostError, kernel=image, cpus=2, engine="kvm")
    assert isinstance(error, OSError)
    assert error.errno == 24
    assert "open files" in str(error.remedy)


def test_errors_are_builtin_errors_too() -> None:
    with pytest.raises(ValueError, match="empty"):
        vmlet.VM(kernel=b"")
    with vmlet.VM(kernel=guest("spin")) as vm, pytest.raises(TimeoutError):
        vm.run(timeout=0.01)


def test_the_tree_of_exceptions_has_one_root() -> None:
    for name in vmlet.__all__:
        if name.endswith("Error") and name != "Error":
            assert issubclass(getattr(vmlet, name), vmlet.Error)
