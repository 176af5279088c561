"""The command line of ``ci/lab``."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType

from . import runner
from .bochs import models
from .bochs import runner as bochs
from .doctor import examine
from .errors import LabError, progress
from .flavour import FLAVOURS, BochsFlavour, Flavour, QemuFlavour, intel
from .guest import Command
from .paths import REPOSITORY, cache_dir
from .runner import LAB_FAILED, Options, Shape


def parser() -> argparse.ArgumentParser:
    """The options before ``--``."""
    result = argparse.ArgumentParser(
        prog="ci/lab",
        usage="ci/lab FLAVOUR [options] -- COMMAND...",
        description="Run a command of the project inside a kernel on emulated hardware.",
        epilog="The status is the command's; 124: timeout; 125: the lab itself failed.",
    )
    add = result.add_argument
    add("flavour", choices=sorted(FLAVOURS), nargs="?", default="amd")
    add("--timeout", type=float, default=900.0, metavar="S", help="seconds for the run (900)")
    add("--silence", type=float, metavar="S", help="end after so many seconds without a word")
    add("--cold", action="store_true", help="boot L1 instead of resuming its saved state")
    add("--plug", action="append", default=[], metavar="DEVICE",
        help="hot-plug this emulated device into a free root port; may be repeated")  # fmt: skip
    add("--qemu", action="append", default=[], metavar="ARGS",
        help="more arguments for the emulator, split like a shell does")  # fmt: skip
    add("--append", action="append", default=[], metavar="ARGS",
        help="more options of L1's kernel, not in flavour intel")  # fmt: skip
    add("--add", action="append", default=[], type=Path, metavar="FILE",
        help="a file the command needs, where L1 does not see the host's")  # fmt: skip
    add("--cpu", choices=sorted(models.MODELS), help="the processor of L1, flavour intel only")
    add("--smp", type=int, metavar="N", help="processors of L1 (amd and cards: 2, others: 1)")
    add("--mem", type=int, metavar="MIB", help="memory of L1 (amd: 2560, intel: 2400)")
    add("--cwd", type=Path, default=REPOSITORY, help="working folder (the repository)")
    add("--venv", type=Path, default=REPOSITORY / "target" / "venv",
        help="virtual environment whose programs come first (target/venv)")  # fmt: skip
    add("--out", type=Path, help="folder that the command may write, as $VMLET_OUT")
    add("--env", action="append", default=[], metavar="NAME=VALUE")
    add("--console", action="store_true", help="show L1's console on stderr")
    add("--flavour-info", action="store_true", help="print what the flavour is, as JSON")
    add("--doctor", action="store_true", help="check the lab itself")
    return result


def main(arguments: list[str]) -> int:
    """Run ``ci/lab`` and return its exit status."""
    before, command = _divided(arguments)
    options = parser().parse_args(before)
    flavour = _flavour(options)
    signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        if options.flavour_info:
            print(json.dumps(_information(flavour)))
            return 0
        if options.doctor:
            return examine(flavour, _out(options), lambda words: _run(flavour, options, words))
        if not command:
            parser().error("no command; it follows `--`")
        if os.environ.get("VMLET_LAB") == flavour.name:
            os.execvp(command[0], command)
        return _run(flavour, options, command)
    except LabError as error:
        progress(str(error))
        return LAB_FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Nobody reads on; keep the interpreter from flushing into the pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _divided(arguments: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _exit_on_signal(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _information(flavour: Flavour) -> dict[str, object]:
    return {
        "flavour": flavour.name,
        "summary": flavour.summary,
        "provides": list(flavour.provides),
        "time_factor": flavour.time_factor,
        "root_ports": flavour.root_ports if isinstance(flavour, QemuFlavour) else 0,
        "cache": str(cache_dir()),
    }


def _flavour(options: argparse.Namespace) -> Flavour:
    flavour = FLAVOURS[options.flavour]
    if options.cpu is None:
        return flavour
    if not isinstance(flavour, BochsFlavour):
        parser().error(f"flavour {flavour.name} has one processor model only")
    return intel(models.by_name(options.cpu))


def _run(flavour: Flavour, options: argparse.Namespace, words: list[str]) -> int:
    cwd = options.cwd.resolve()
    if not cwd.is_dir():
        raise LabError(f"{cwd} is no folder")
    shape = _shape(flavour, options)
    command = Command(
        arguments=tuple(words),
        cwd=cwd,
        out=_out(options),
        venv=options.venv.absolute(),
        environment=tuple(_assignment(text) for text in options.env),
    )
    command.out.mkdir(parents=True, exist_ok=True)
    how = Options(
        options.timeout, options.cold, tuple(options.plug), options.console,
        tuple(path.absolute() for path in options.add), options.silence,
    )  # fmt: skip
    if isinstance(flavour, QemuFlavour):
        return runner.run(flavour, shape, command, how)
    if isinstance(flavour, BochsFlavour):
        if options.plug or options.qemu or options.append or options.silence:
            alien = "--plug, --qemu, --append and --silence"
            raise LabError(f"{alien} are not for flavour {flavour.name}")
        return bochs.run(flavour, shape, command, how)
    raise LabError(f"flavour {flavour.name} has no emulator")


def _out(options: argparse.Namespace) -> Path:
    chosen: Path = options.out or cache_dir() / "out"
    return chosen.resolve()


def _shape(flavour: Flavour, options: argparse.Namespace) -> Shape:
    cpus = flavour.cpus if options.smp is None else options.smp
    memory = flavour.memory if options.mem is None else options.mem
    if not 512 <= memory <= flavour.memory_max or cpus < 1:
        raise LabError(f"--mem must be 512 to {flavour.memory_max}, --smp at least 1")
    extra = tuple(word for text in options.qemu for word in shlex.split(text))
    return Shape(cpus, memory, extra, tuple(options.append))


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise LabError(f"--env takes NAME=VALUE, not {text!r}")
    return name, value
