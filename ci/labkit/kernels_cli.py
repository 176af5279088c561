"""The command line of ``ci/kernels``."""

from __future__ import annotations

import argparse

from . import packages
from .errors import LabError, progress


def main(arguments: list[str]) -> int:
    """Fetch the guests' kernels into the cache; print them where asked."""
    parser = argparse.ArgumentParser(
        prog="ci/kernels",
        description="Fetch the kernels and images that the tests boot, unpacked in the cache.",
    )
    parser.add_argument("--print", action="store_true", help="print lines of name=path")
    parser.add_argument("--refresh", action="store_true", help="look for newer packages")
    options = parser.parse_args(arguments)
    try:
        for name, path in packages.index(refresh=options.refresh).items():
            if options.print:
                print(f"{name}={path}")
    except LabError as error:
        progress(str(error))
        return 1
    return 0
