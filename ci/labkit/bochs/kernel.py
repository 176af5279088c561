"""L1's kernel as the emulator loads it: a flat image, and the parameters beside it.

Offsets are those of Linux's x86 boot protocol (Documentation/arch/x86/boot.rst)
and of ELF64.
"""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ..errors import LabError
from ..paths import locked
from . import programs

# Compression by the first bytes of the payload, and the program that undoes it.
_DECOMPRESSORS = {
    b"\x02\x21\x4c\x18": ("lz4", "-dc"),
    b"\x28\xb5\x2f\xfd": ("zstd", "-dcq"),
    b"\xfd7zXZ": ("xz", "-dc"),
    b"\x1f\x8b": ("gzip", "-dc"),
}
_SETUP_HEADER = 0x1F1
_PAGE = 4096
_COMMAND_LINE_MAX = 2048
_PT_LOAD = 1
# The header of the kernel's BTF section: magic, version 1, flags 0, header of 24 bytes.
_BTF_HEADER = b"\x9f\xeb\x01\x00\x18\x00\x00\x00\x00\x00\x00\x00"

PARAMETERS_ADDRESS = 0x90000


@dataclass(frozen=True)
class Flat:
    """A kernel's segments as they lie in memory."""

    content: bytes
    address: int
    entry: int


def payload(image: bytes) -> bytes:
    """The compressed kernel inside a bzImage."""
    if image[0x202:0x206] != b"HdrS":
        raise LabError("the kernel of L1 is no bzImage")
    setup = ((image[_SETUP_HEADER] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    return image[setup + offset : setup + offset + length]


def decompressed(packed: bytes) -> bytes:
    """The ELF file in a payload, whose last four bytes are its size."""
    for magic, command in _DECOMPRESSORS.items():
        if packed.startswith(magic):
            done = subprocess.run(command, input=packed[:-4], capture_output=True, check=False)
            size = int.from_bytes(packed[-4:], "little")
            if done.returncode or len(done.stdout) != size:
                raise LabError(f"{command[0]} cannot unpack L1's kernel: {done.stderr.decode()}")
            return done.stdout
    raise LabError(f"L1's kernel has an unknown compression, {packed[:6].hex()}")


def flattened(elf: bytes) -> Flat:
    """The loadable segments at their physical places, with the type information spoiled.

    Without a valid BTF header the kernel does not parse megabytes of it, 60 million instructions.
    """
    if elf[:5] != b"\x7fELF\x02":
        raise LabError("L1's kernel is no ELF64 file")
    (entry,) = struct.unpack_from("<Q", elf, 24)
    (table,) = struct.unpack_from("<Q", elf, 32)
    (count,) = struct.unpack_from("<H", elf, 56)
    segments = []
    for number in range(count):
        header = struct.unpack_from("<IIQQQQQQ", elf, table + 56 * number)
        kind, _, offset, _, physical, size, _, _ = header
        if kind == _PT_LOAD:
            segments.append((physical, elf[offset : offset + size]))
    if not segments:
        raise LabError("L1's kernel has nothing to load")
    start = min(address for address, _ in segments)
    content = bytearray(max(address + len(data) for address, data in segments) - start)
    for address, data in segments:
        content[address - start : address - start + len(data)] = data
    types = content.find(_BTF_HEADER)
    if types >= 0:
        content[types : types + 2] = bytes(2)
    return Flat(bytes(content), start, entry)


def parameters(image: bytes, address: int, initrd: tuple[int, int], command_line: str) -> bytes:
    """boot_params of a bzImage's header, with the command line on the page after it.

    `address` is the flat image's, `initrd` is address and size.  The boot sector adds the memory
    map.
    """
    text = command_line.encode() + b"\0"
    if len(text) > _COMMAND_LINE_MAX:
        raise LabError("L1's command line is too long")
    page = bytearray(_PAGE)
    end = 0x202 + image[0x201]
    page[_SETUP_HEADER:end] = image[_SETUP_HEADER:end]
    page[0x210] = 0xFF  # type_of_loader: one without a number
    page[0x211] |= 1  # loadflags: the kernel is at or above 1 MiB
    struct.pack_into("<H", page, 0x1FA, 0xFFFF)  # vid_mode: normal
    struct.pack_into("<I", page, 0x214, address)  # code32_start
    struct.pack_into("<II", page, 0x218, *initrd)
    struct.pack_into("<I", page, 0x228, PARAMETERS_ADDRESS + _PAGE)  # cmd_line_ptr
    return bytes(page) + text.ljust(_COMMAND_LINE_MAX, b"\0")


def cached(bzimage: Path) -> tuple[Path, int, int]:
    """The flat image of a kernel as a file, with its address and its entry."""
    stat = bzimage.stat()
    identity = f"{bzimage} {stat.st_size} {stat.st_mtime_ns}".encode()
    key = hashlib.sha256(identity + Path(__file__).read_bytes()).hexdigest()[:16]
    image = programs.folder() / f"kernel-{key}.flat"
    places = image.with_suffix(".json")
    if not places.exists():
        with locked(programs.folder() / "kernel.lock"):
            for old in (*image.parent.glob("kernel-*.flat"), *image.parent.glob("kernel-*.json")):
                old.unlink()
            flat = flattened(decompressed(payload(bzimage.read_bytes())))
            image.write_bytes(flat.content)
            places.write_text(json.dumps({"address": flat.address, "entry": flat.entry}))
    known = json.loads(places.read_text())
    return image, known["address"], known["entry"]
