"""Writes an initial RAM file system with one program: `initramfs.py OUT INIT`."""

from __future__ import annotations

import sys
from pathlib import Path

import vmlet


def main() -> None:
    """Pack INIT as /init into OUT."""
    out, init = (Path(word) for word in sys.argv[1:])
    out.write_bytes(vmlet.build_initramfs(files={"init": init.read_bytes()}))


if __name__ == "__main__":
    main()
