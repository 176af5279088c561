"""From a script's name to the module that does its work."""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from types import FrameType

from .process import CommandError, end_all

_MODULES = {
    "bench": "bench.cli",
    "build": "build",
    "demo": "demo",
    "fuzz": "fuzz",
    "layers": "layers",
    "test": "suite",
}


class _Terminated(BaseException):
    """SIGTERM came."""


def _terminate(number: int, _: FrameType | None) -> None:
    raise _Terminated(number)


def main(arguments: list[str]) -> int:
    """Run one command and return its exit status."""
    if not arguments or arguments[0] not in _MODULES:
        print(f"ci/kit: the commands are {', '.join(_MODULES)}", file=sys.stderr)
        return 2
    module = import_module(f"kit.{_MODULES[arguments[0]]}")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return int(module.main(arguments[1:]))
    except CommandError as error:
        print(f"ci/{arguments[0]}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        end_all()
        return 128 + signal.SIGINT
    except _Terminated:
        end_all()
        return 128 + signal.SIGTERM
