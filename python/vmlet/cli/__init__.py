"""The command line: ``vmlet run``, ``doctor``, ``kernel``, ``vfio``, ``sriov``."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import vmlet
from vmlet.cli import doctor, kernel, run, sriov, vfio
from vmlet.cli.failure import ERROR, describe, report
from vmlet.errors import Error

__all__ = ["main"]

_ABOUT = "Virtual machines in this process, on KVM or on a software CPU."


class _Parser(argparse.ArgumentParser):
    """Reports wrong usage as every other error."""

    def error(self, message: str) -> NoReturn:
        report(message, f"See {self.prog} --help.")
        raise SystemExit(ERROR)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser: argparse.ArgumentParser = _Parser(prog="vmlet", description=_ABOUT, allow_abbrev=False)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    run.add_parser(commands)
    doctor.add_parser(commands)
    kernel.add_parser(commands)
    vfio.add_parser(commands)
    sriov.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit status; no exception leaves it."""
    try:
        return _main(argv)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else ERROR if end.code else 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Nobody reads: the interpreter's own flush at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if os.environ.get("VMLET_DEBUG"):
            traceback.print_exc()
        if isinstance(error, Error):
            report(error.message or type(error).__name__, error.remedy)
        elif isinstance(error, OSError):
            report(str(error), None)
        else:
            text = f"{type(error).__name__}: {error}"
            report(text, "This is a fault of vmlet; VMLET_DEBUG=1 shows where it is.")
        return ERROR


def _main(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.version:
        print(f"vmlet {vmlet.__version__}")
        return 0
    if not hasattr(args, "execute"):
        parser.print_help(sys.stderr)
        return ERROR
    try:
        status = args.execute(args)
    except Error as error:
        if args.json:
            print(json.dumps({"error": describe(error), "status": ERROR}))
        raise
    sys.stdout.flush()
    return int(status)
