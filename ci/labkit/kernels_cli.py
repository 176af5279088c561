"""The command line of ``ci/kernels``."""

from __future__ import annotations

import argparse

from . import iommufd, older_qemu, packages, userland
from .errors import LabError, progress


def main(arguments: list[str]) -> int:
    """Fetch the guests' kernels and programs into the cache; print them where asked."""
    parser = argparse.ArgumentParser(
        prog="ci/kernels",
        description="Fetch what the tests boot and run: kernels, images, roots of programs.",
    )
    parser.add_argument("--print", action="store_true", help="print lines of name=path")
    parser.add_argument("--refresh", action="store_true", help="look for newer packages")
    options = parser.parse_args(arguments)
    try:
        found = packages.index(refresh=options.refresh)
        for name in userland.ROOTS:
            found[name] = userland.root(name, refresh=options.refresh)
        if options.refresh:
            # The lab makes them when it first needs them.
            iommufd.kernel(refresh=True)
            older_qemu.command(refresh=True)
        for name, path in found.items():
            if options.print:
                print(f"{name}={path}")
    except LabError as error:
        progress(str(error))
        return 1
    return 0
