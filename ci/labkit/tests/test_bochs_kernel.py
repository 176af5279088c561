"""L1's kernel is put into memory as Linux's boot protocol says."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest

from labkit.bochs import kernel
from labkit.bochs.config import INITRD_ADDRESS, MIB, ROOT_ADDRESS, Layout, render
from labkit.errors import LabError

BTF = b"\x9f\xeb\x01\x00\x18" + bytes(8)


def elf(segments: list[tuple[int, bytes]], entry: int = 0x1000040) -> bytes:
    """An ELF64 file with these segments, and one that is not to be loaded."""
    headers, data = b"", b""
    start = 64 + 56 * (len(segments) + 1)
    for kind, (address, content) in [(4, (0, b"note")), *((1, one) for one in segments)]:
        place = start + len(data)
        size = len(content)
        headers += struct.pack("<IIQQQQQQ", kind, 5, place, 0, address, size, size, 0)
        data += content
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQ", 2, 62, 1, entry, 64)
    head += bytes(8) + struct.pack("<IHHH", 0, 64, 56, len(segments) + 1)
    return head.ljust(64, b"\0") + headers + data


def bzimage(payload: bytes) -> bytes:
    image = bytearray(0x400)
    image[0x1F1] = 1  # sectors of setup beside the first
    image[0x201] = 0x6C
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 16, len(payload))
    return bytes(image) + bytes(16) + payload


def test_the_payload_is_found_behind_the_setup_code() -> None:
    assert kernel.payload(bzimage(b"packed")) == b"packed"


def test_another_file_is_no_kernel() -> None:
    with pytest.raises(LabError, match="no bzImage"):
        kernel.payload(bytes(0x400))


def test_a_payload_is_unpacked_and_its_size_is_checked() -> None:
    content = b"\x7fELF" * 100
    packed = gzip.compress(content)
    assert kernel.decompressed(packed + struct.pack("<I", len(content))) == content
    with pytest.raises(LabError, match="gzip"):
        kernel.decompressed(packed + struct.pack("<I", len(content) + 1))
    with pytest.raises(LabError, match="unknown compression"):
        kernel.decompressed(b"plain text")


def test_segments_lie_at_their_physical_places() -> None:
    flat = kernel.flattened(elf([(0x1000000, b"text"), (0x1000010, b"data")]))
    assert (flat.address, flat.entry) == (0x1000000, 0x1000040)
    assert flat.content == b"text".ljust(16, b"\0") + b"data"


def test_type_information_is_no_longer_valid() -> None:
    flat = kernel.flattened(elf([(0x1000000, b"before" + BTF + b"after")]))
    assert flat.content == b"before\0\0" + BTF[2:] + b"after"


def test_a_file_without_segments_is_refused() -> None:
    with pytest.raises(LabError, match="nothing to load"):
        kernel.flattened(elf([]))
    with pytest.raises(LabError, match="no ELF64"):
        kernel.flattened(b"\x7fELF\x01")


def test_parameters_name_the_initial_file_system_and_the_command_line() -> None:
    page = kernel.parameters(bzimage(b""), 0x1000000, (0x8000000, 1234), "quiet")
    assert struct.unpack_from("<II", page, 0x218) == (0x8000000, 1234)
    (line,) = struct.unpack_from("<I", page, 0x228)
    assert page[line - kernel.PARAMETERS_ADDRESS :].rstrip(b"\0") == b"quiet"
    with pytest.raises(LabError, match="too long"):
        kernel.parameters(bzimage(b""), 0, (0, 0), "x" * 2048)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(
        folder=tmp_path, model="m", cpus=1, memory=1024, kernel=tmp_path / "k",
        kernel_address=0x1000000, initrd=tmp_path / "i", root=tmp_path / "r",
        root_size=160 * MIB,
    )  # fmt: skip


def test_the_root_image_has_memory_of_its_own(layout: Layout) -> None:
    assert layout.total_memory == 1024 + 160
    assert layout.kernel_arguments() == f"memmap=160M!{ROOT_ADDRESS // MIB}M"


def test_the_configuration_names_every_image_and_its_place(layout: Layout) -> None:
    text = render(layout)
    assert f"optramimage3: file={layout.initrd}, address={INITRD_ADDRESS:#x}" in text
    assert f"optramimage4: file={layout.root}, address={ROOT_ADDRESS:#x}" in text
    assert "memory: guest=1184, host=1184" in text


def test_errors_are_reported_only_where_asked_for(layout: Layout) -> None:
    assert "error: action=ignore" in render(layout)
    assert "error: action=report" in render(layout, report_errors=True)
