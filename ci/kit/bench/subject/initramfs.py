"""Writes an initial RAM file system with one program and modules.

`initramfs.py OUT INIT [DIRECTORY MODULE...]`: the modules are taken from DIRECTORY.
"""

from __future__ import annotations

import sys
from pathlib import Path

import vmlet


def main() -> None:
    """Pack INIT as /init into OUT."""
    out, init = (Path(word) for word in sys.argv[1:3])
    directory, modules = next(iter(sys.argv[3:]), None), sys.argv[4:]
    image = vmlet.build_initramfs(
        files={"init": init.read_bytes()}, modules=modules, modules_directory=directory
    )
    out.write_bytes(image)


if __name__ == "__main__":
    main()
