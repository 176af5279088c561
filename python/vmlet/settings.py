"""Settings of a VM as the core takes them."""

from __future__ import annotations

import os

from vmlet.errors import ConfigError
from vmlet.sizes import parse_size


def kernel_cache() -> str | None:
    """The folder in which unpacked kernels are kept; None: they are not.

    VMLET_KERNEL_CACHE names another one, or none where it is empty.
    """
    given = os.environ.get("VMLET_KERNEL_CACHE")
    if given is not None:
        return given or None
    # Not by `pathlib`, which takes long to import.
    caches, home = os.environ.get("XDG_CACHE_HOME"), os.environ.get("HOME")
    if not caches and home:
        caches = f"{home}/.cache"
    return f"{caches}/vmlet/kernels" if caches else None


def rate(khz: int | None) -> int | None:
    """Kilohertz, or None."""
    if khz is None or (isinstance(khz, int) and 0 <= khz < 1 << 32):
        return khz
    raise ConfigError(f"tsc_khz cannot be {khz!r}", remedy="Give kilohertz.")


def ring_entries(ring: int | None) -> int | None:
    """Entries of a ring, or None."""
    if ring is None or (isinstance(ring, int) and 0 <= ring < 1 << 32):
        return ring
    raise ConfigError(f"dirty_ring cannot be {ring!r}", remedy="Give a number of entries.")


def backing_of(ram: str) -> tuple[str, int]:
    """Name and huge page size of what ``ram`` asks for."""
    if not isinstance(ram, str) or not ram.startswith("hugetlb"):
        return ram, 0
    try:
        size = parse_size(ram.removeprefix("hugetlb").removeprefix(":"))
    except ConfigError:
        size = 0
    if size < 1 << 16 or size & (size - 1):
        raise ConfigError(
            f"ram cannot be {ram!r}", remedy='Name the page size: "hugetlb:2M" or "hugetlb:1G".'
        )
    return "hugetlb", size
