"""Sizes as people write them."""

from __future__ import annotations

from vmlet.errors import ConfigError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(size: int | str) -> int:
    """Bytes of a size: a number of bytes, or text with a unit of 1024.

    >>> parse_size("1G"), parse_size("512 MiB"), parse_size(4096)
    (1073741824, 536870912, 4096)
    """
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise ConfigError(f"a size cannot be {size!r}", remedy='Give bytes or text like "256M".')
    if isinstance(size, int):
        if size < 0:
            raise ConfigError(f"a size cannot be {size}", remedy="Give a positive number.")
        return size
    text = size.strip().upper()
    number = text.rstrip("KMGTIB \t")
    unit = text[len(number) :].strip()
    factor = _UNITS.get(unit.removesuffix("B").removesuffix("I"))
    if not (number.isascii() and number.isdigit()) or factor is None or unit == "I":
        raise ConfigError(f"a size cannot be {size!r}", remedy='Give bytes or text like "256M".')
    return int(number) * factor
