"""``vmlet run``: boots a kernel with its console on this terminal or pipe."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vmlet
from vmlet.cli.machine import Event, MakeMachine, default_machine
from vmlet.cli.session import Session, Streams, own_streams
from vmlet.cli.terminal import ended_by_signals
from vmlet.errors import ConfigError
from vmlet.kernels import Kernel, find_kernel

if TYPE_CHECKING:
    from vmlet.cli.commands import Commands

TIMED_OUT = 124
STATUSES = {
    "poweroff": 0,
    "reset": 0,
    "stopped": 0,
    "error": 1,
    "panic": 3,
    "triple-fault": 4,
    "halt": 5,
}
"""The exit status for each kind of event that ends a run; any other gives 1."""

_ABOUT = (
    "Boots a kernel. Its serial console is this terminal, or stdin and stdout where they are pipes."
)
_STATUSES = """\
exit status:
  0    the guest powered off or asked for a reset, or you quit (Ctrl-] q)
  1    the engine could not go on
  2    wrong usage, bad kernel or initramfs, no engine or none that has the CPU model
  3    the guest's kernel panicked
  4    triple fault
  5    the guest halted for good without powering off
  124  --timeout passed
  128+N  ended by signal N (SIGINT 130, SIGTERM 143, a closed output 141)
"""


def add_parser(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "run",
        help="boot a kernel",
        description=_ABOUT,
        epilog=_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kernel = "an image, or a name that vmlet kernel list knows (6.1, 6.12-cloud)"
    parser.add_argument("kernel", metavar="KERNEL", help=kernel)
    parser.add_argument("--initramfs", metavar="FILE|DIR", help="an image, or a directory to pack")
    parser.add_argument(
        "--module", metavar="FILE", action="append", default=[], help="a PVH module; repeatable"
    )
    parser.add_argument("--memory", metavar="SIZE", default="256M", help="RAM (default 256M)")
    parser.add_argument("--cpus", metavar="N", type=int, default=1, help="vCPUs (default 1)")
    line = parser.add_mutually_exclusive_group()
    line.add_argument("--cmdline", metavar="STR", help="the kernel's command line")
    line.add_argument("--append", metavar="STR", help="is added to the default command line")
    parser.add_argument("--engine", metavar="E", default="auto", help="auto, kvm or soft")
    parser.add_argument(
        "--cpu", metavar="M", default="host", help="host, or a model that vmlet doctor lists"
    )
    parser.add_argument(
        "--protocol", metavar="P", default="auto", help="auto, linux64, pvh or bzimage"
    )
    parser.add_argument("--timeout", metavar="S", type=_seconds, help="stop after S seconds")
    parser.add_argument(
        "--json", action="store_true", help="print the event as a JSON object on the last line"
    )
    parser.add_argument("--no-input", action="store_true", help="do not read stdin")
    parser.set_defaults(execute=execute)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value < math.inf):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def execute(
    args: argparse.Namespace,
    *,
    make_machine: MakeMachine = default_machine,
    streams: Streams | None = None,
) -> int:
    """Runs the machine and gives the exit status."""
    streams = streams or own_streams(use_input=not args.no_input)
    options = machine_options(args)
    began = time.monotonic()
    with ended_by_signals():
        machine = make_machine(**options)
        try:
            session = Session(machine, streams, args.timeout)
            event, status = _outcome(session)
            engine = machine.engine
        finally:
            machine.close()
    if args.json:
        answer = {
            "event": event,
            "status": status,
            "engine": engine,
            "kernel": os.fspath(options["kernel"]),
            "seconds": round(time.monotonic() - began, 3),
        }
        text = ("" if session.at_line_start else "\n") + json.dumps(answer) + "\n"
        os.write(streams.output, text.encode())
    elif status not in (0, 128 + signal.SIGINT):
        said = ": ".join(part for part in (event["kind"], event["source"], event["detail"]) if part)
        print(f"vmlet: the run ended by {said}", file=sys.stderr)
    return status


def _outcome(session: Session) -> tuple[dict[str, Any], int]:
    try:
        event = session.run()
    except KeyboardInterrupt:
        return _described("stopped", "user", "interrupted"), 128 + signal.SIGINT
    except BrokenPipeError:
        return _described("stopped", "user", "the output was closed"), 128 + signal.SIGPIPE
    except TimeoutError:
        return _described("timeout", "user", "the time given has passed"), TIMED_OUT
    return _as_dict(event), STATUSES.get(event.kind, 1)


def _described(kind: str, source: str, detail: str) -> dict[str, Any]:
    return {"kind": kind, "vcpu": None, "source": source, "detail": detail}


def _as_dict(event: Event) -> dict[str, Any]:
    return {
        "kind": event.kind,
        "vcpu": event.vcpu,
        "source": event.source,
        "detail": event.detail,
    }


def machine_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments for ``vmlet.VM``."""
    found = find_kernel(args.kernel)
    kernel = found.path if isinstance(found, Kernel) else found
    for name in (kernel, args.initramfs, *args.module):
        if name is not None and not Path(name).exists():
            raise ConfigError(
                f"there is no file {os.fspath(name)!r}",
                remedy="Check the path; vmlet kernel list shows the kernels known here.",
            )
    options: dict[str, Any] = {
        "kernel": kernel,
        "initramfs": args.initramfs,
        "modules": tuple(args.module),
        "memory": args.memory,
        "cpus": args.cpus,
        "engine": args.engine,
        "cpu": args.cpu,
        "protocol": args.protocol,
        "cmdline": args.cmdline,
    }
    if args.append is not None:
        options["cmdline"] = f"{vmlet.default_cmdline(args.engine)} {args.append}"
    return options
