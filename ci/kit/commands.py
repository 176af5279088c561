"""From a script's name to the module that does its work."""

from __future__ import annotations

import sys
from importlib import import_module

from .process import CommandError

_MODULES = {
    "bench": "bench.cli",
    "build": "build",
    "demo": "demo",
    "fuzz": "fuzz",
    "layers": "layers",
    "test": "suite",
}


def main(arguments: list[str]) -> int:
    """Run one command and return its exit status."""
    if not arguments or arguments[0] not in _MODULES:
        print(f"ci/kit: the commands are {', '.join(_MODULES)}", file=sys.stderr)
        return 2
    module = import_module(f"kit.{_MODULES[arguments[0]]}")
    try:
        return int(module.main(arguments[1:]))
    except CommandError as error:
        print(f"ci/{arguments[0]}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
