"""One run: resume or boot L1, run the command, pass its output on live."""

from __future__ import annotations

import contextlib
import selectors
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from . import guest, initrd, iommufd, older_qemu, packages, standstill
from .errors import LabError, progress
from .flavour import TRACE, QemuFlavour
from .machine import Config, Machine, reported_status
from .paths import cache_dir, locked, locked_if_free
from .snapshot import saved_state

LAB_FAILED = 125
TIMED_OUT = 124
_STALE = 60.0  # seconds after which a run folder without an owner is removed
_STANDSTILL = "standstill.txt"  # in the folder that the command may write
_TOLD = 8000  # characters of it that are shown
_CONSOLE_TAIL = 60  # lines of L1's console that are shown when the lab fails


@dataclass(frozen=True)
class Options:
    """How to run."""

    timeout: float  # seconds for the whole run
    cold: bool = False
    plug: tuple[str, ...] = ()
    console: bool = False  # L1's console to stderr while it runs
    add: tuple[Path, ...] = ()  # files that the command needs, where L1 does not see the host
    silence: float | None = None  # seconds without a word after which the machine stands still


@dataclass(frozen=True)
class Shape:
    """How large L1 is, and what more its emulator and its kernel are told."""

    cpus: int
    memory: int  # MiB
    extra: tuple[str, ...] = ()
    append: tuple[str, ...] = ()


def run(flavour: QemuFlavour, shape: Shape, command: guest.Command, options: Options) -> int:
    """Run the command and return its status, 124 after a timeout, 125 when L1 failed."""
    packages.ensure_tools()
    kernel, modules = iommufd.kernel() if flavour.iommufd else _kernel()
    config = Config(
        flavour=flavour,
        kernel=kernel,
        initrd=initrd.build(modules, flavour.modules),
        cpus=shape.cpus,
        memory=shape.memory,
        extra=shape.extra,
        append=shape.append,
        emulator=older_qemu.command() if flavour.older else (packages.QEMU,),
    )
    running = with_backends(config, command.out)
    with run_folder() as folder:
        devices = _placed((*flavour.plugged, *options.plug), flavour.root_ports)
        cold = options.cold or not flavour.saved
        plugged = 0 if cold else len(devices)
        (folder / "command").write_text(guest.script(command, config.flavour))
        (folder / "settings").write_text(guest.settings(command, plugged))
        if cold:
            plug = tuple(p for device in devices for p in ("-device", device))
            booted = replace(running, extra=(*running.extra, *plug))
            with Machine(booted, run=folder, out=command.out, go=True) as machine:
                return _attend(machine, folder, command.out, options)
        with (
            saved_state(config) as state,
            Machine(running, run=folder, out=command.out, go=True, incoming=state) as machine,
        ):
            if devices:
                _plug(machine, devices)
            return _attend(machine, folder, command.out, options)


def _kernel() -> tuple[Path, Path]:
    """The distribution's kernel, and the folder of its modules."""
    kernels = packages.index(guests=False)
    return kernels[packages.L1_KERNEL], kernels[f"{packages.L1_KERNEL}-modules"]


def with_backends(config: Config, out: Path) -> Config:
    """The machine with what its flavour's devices need, which some keep in a saved state: it is
    saved without. So it is without what is traced into `out`."""
    flavour = config.flavour
    trace = [word for event in flavour.traced for word in ("-trace", event)]
    trace += ["-D", str(out / TRACE)] if trace else []
    return replace(config, extra=(*flavour.backends, *trace, *config.extra))


def _placed(devices: tuple[str, ...], ports: int) -> list[str]:
    """Devices with a root port each, where none is named; a machine without has its root bus."""
    return [
        device if ",bus=" in device or not ports else f"{device},bus=rp{number}"
        for number, device in enumerate(devices)
    ]


def _plug(machine: Machine, devices: list[str]) -> None:
    qmp = machine.monitor()
    qmp.wait_for("query-status", {"running"})
    for device in devices:
        answer = qmp.ask(f"device_add {device}").strip()
        if "Error" in answer:
            raise LabError(f"device_add {device}: {answer}")


@contextmanager
def run_folder() -> Iterator[Path]:
    """A folder for one run, removed with it; those of killed runs go as well."""
    runs = cache_dir() / "runs"
    runs.mkdir(exist_ok=True)
    for old in runs.iterdir():
        with contextlib.suppress(FileNotFoundError):  # its run has just removed it
            if time.time() - old.stat().st_mtime > _STALE:
                with locked_if_free(old / "lock") as free:
                    if free:
                        shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=runs))
    try:
        with locked(folder / "lock"):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _attend(machine: Machine, folder: Path, out: Path, options: Options) -> int:
    console: deque[bytes] = deque(maxlen=_CONSOLE_TAIL)
    if late := _forward(machine, console, options):
        progress(late)
        if options.silence is not None:
            _tell_where(machine, out)
        return TIMED_OUT
    ended = machine.wait(10.0)
    reported = reported_status(ended)
    status = _read_status(folder)
    if reported is None or status is None or status & 63 != reported:
        tail = b"\n".join(console).decode(errors="replace")
        progress(f"L1 ended without the command's status; its console:\n{tail}")
        said = machine.complaints().strip() or "nothing"
        progress(f"the emulator ended with {ended} and said: {said}")
        return LAB_FAILED
    complaints = machine.complaints().strip()
    if complaints and options.console:
        progress(f"the emulator said: {complaints}")
    return status


def _tell_where(machine: Machine, out: Path) -> None:
    told = standstill.stacks(machine)
    file = out / _STANDSTILL
    file.write_text(told)
    progress(f"where it stood is in {file}, which ends:\n{told[-_TOLD:]}")


def _read_status(folder: Path) -> int | None:
    try:
        return int((folder / "status").read_text())
    except (OSError, ValueError):
        return None


def _forward(machine: Machine, console: deque[bytes], options: Options) -> str | None:
    """Pass output on until the emulator ends; which time ran out before, if one did."""
    begin = said = time.monotonic()
    sinks: dict[str, BinaryIO] = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    rest = b""
    with selectors.DefaultSelector() as selector:
        for name in ("stdout", "stderr", "console"):
            selector.register(machine.channel(name), selectors.EVENT_READ, name)
        while selector.get_map():
            now = time.monotonic()
            left = begin + options.timeout - now
            if left <= 0:
                return f"the command did not end within {options.timeout:g} s"
            if options.silence is not None and now - said >= options.silence:
                return f"nothing was said for {options.silence:g} s: L1 stands still"
            for key, _ in selector.select(min(left, 1.0)):
                data = _receive(machine, key.data)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.data in sinks:
                    # A kernel whose tasks are blocked goes on saying so on its console.
                    said = time.monotonic()
                    write(sinks[key.data], data)
                else:
                    *lines, rest = (rest + data).replace(b"\r", b"").split(b"\n")
                    console.extend(lines)
                    if options.console:
                        write(sys.stderr.buffer, data)
    console.append(rest)
    return None


def _receive(machine: Machine, name: str) -> bytes:
    try:
        return machine.channel(name).recv(65536)
    except ConnectionResetError:  # the emulator ended with unread input on its side
        return b""


def write(sink: BinaryIO, data: bytes) -> None:
    """Pass output on at once."""
    sink.write(data)
    sink.flush()
