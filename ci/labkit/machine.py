"""One emulator process: its arguments, its channels and its end."""

from __future__ import annotations

import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .errors import LabError
from .flavour import QemuFlavour
from .packages import QEMU
from .qmp import Qmp

# Options that only add a back end: they are no part of the saved state, so a
# run may bring its own.
_BACKENDS = {"-netdev", "-drive", "-blockdev", "-chardev", "-object", "-trace", "-d", "-D"}


@dataclass(frozen=True)
class Config:
    """What the emulated machine is made of; the saved state depends on all of it."""

    flavour: QemuFlavour
    kernel: Path
    initrd: Path
    cpus: int
    memory: int  # MiB
    extra: tuple[str, ...] = ()
    append: tuple[str, ...] = ()  # to the kernel's command line
    emulator: tuple[str, ...] = (QEMU,)

    def shape(self) -> tuple[str, ...]:
        """The arguments that the saved state depends on, without machine paths."""
        count, cmdline = self.cpus, self.flavour.kernel_cmdline
        if self.cpus > 1:
            # The emulator's own flags of its first processor, among them whether a guest of L1 runs
            # and whether its pages are nested, are written without a lock whenever any processor
            # loads FPU state (`cpu_clear_ignne` of QEMU 10.0.2): guests that run there end by
            # triple faults and their hosts stand still. So nothing runs there.
            count += 1
            cmdline += f" isolcpus=0 irqaffinity=1-{self.cpus}"
        cmdline = " ".join([cmdline, *self.append])
        arguments = [*self.flavour.qemu, "-smp", str(count), "-m", str(self.memory)]
        arguments += ["-append", cmdline]
        for number in range(self.flavour.root_ports):
            arguments += ["-device", f"pcie-root-port,id=rp{number},chassis={number + 1}"]
        return (*arguments, *split_backends(self.extra)[0])


def split_backends(arguments: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Divide pass-through arguments into those of the machine and of back ends."""
    machine: list[str] = []
    backends: list[str] = []
    target = machine
    for argument in arguments:
        if argument.startswith("-"):
            target = backends if argument in _BACKENDS else machine
        target.append(argument)
    return tuple(machine), tuple(backends)


class Machine:
    """A started emulator; leaving the context ends it.

    All channels are socket pairs, so nothing is left in the file system.
    """

    def __init__(
        self, config: Config, *, run: Path, out: Path, go: bool, incoming: Path | None = None
    ) -> None:
        """Start it, with `incoming` from a saved state.

        `run` and `out` are the folders that L1 sees writable; `go` tells L1's
        init to start at once instead of waiting to be saved.
        """
        names = ("console", "qmp", "stdout", "stderr")
        pairs = {name: socket.socketpair() for name in names}
        theirs = {name: pair[1].fileno() for name, pair in pairs.items()}
        command = [*guard(), *config.emulator, *config.shape(), *split_backends(config.extra)[1]]
        command += ["-kernel", str(config.kernel), "-initrd", str(config.initrd)]
        command += _fixed_arguments(theirs, run, out, go)
        if incoming is not None:
            command += ["-incoming", f"file:{_escaped(incoming)}"]
        try:
            self._process = subprocess.Popen(
                command, pass_fds=list(theirs.values()), stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        finally:
            for pair in pairs.values():
                pair[1].close()
        self._channels = {name: pair[0] for name, pair in pairs.items()}
        self._monitor: Qmp | None = None

    def __enter__(self) -> Machine:
        """Return the machine itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the emulator if it still runs, and close all channels."""
        self.kill()
        self._process.wait()
        for channel in self._channels.values():
            channel.close()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def channel(self, name: str) -> socket.socket:
        """Our end of ``console``, ``qmp``, ``stdout`` or ``stderr``."""
        return self._channels[name]

    def monitor(self) -> Qmp:
        """The one session of the emulator's monitor."""
        if self._monitor is None:
            self._monitor = Qmp(self.channel("qmp"))
        return self._monitor

    def kill(self) -> None:
        """End the emulator at once."""
        if self._process.poll() is None:
            self._process.kill()

    def wait(self, timeout: float) -> int:
        """The emulator's own exit status; negative is a signal."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise LabError("the emulator closed its channels and did not end") from None

    def complaints(self) -> str:
        """What the ended emulator itself printed."""
        pipe = self._process.stdout
        return pipe.read().decode(errors="replace") if pipe is not None else ""


def reported_status(exit_status: int) -> int | None:
    """The low 6 bits of the command's status in the emulator's exit status.

    The debug-exit device ends the emulator with ``value << 1 | 1``, of which 7
    bits of the value survive; init writes 64 plus 6 bits.  None: the end was
    not reached by init.
    """
    if exit_status < 0 or not exit_status & 1 or not exit_status & 0x80:
        return None
    return (exit_status >> 1) & 63


def guard() -> list[str]:
    """A prefix that has the kernel end the emulator when the lab is killed."""
    tool = shutil.which("setpriv", path="/usr/bin:/bin")
    return [tool, "--pdeathsig", "KILL", "--"] if tool else []


def _fixed_arguments(fds: dict[str, int], run: Path, out: Path, go: bool) -> list[str]:
    arguments = ["-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"]
    arguments += ["-no-reboot", "-nic", "none"]
    arguments += ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
    arguments += ["-fw_cfg", f"name=opt/vmlet/go,string={int(go)}"]
    for name, fd in fds.items():
        arguments += ["-chardev", f"socket,id={name},fd={fd}"]
    arguments += ["-serial", "chardev:console", "-mon", "chardev=qmp,mode=control"]
    arguments += ["-device", "virtio-serial-pci,id=ports"]
    for number, name in enumerate(("stdout", "stderr"), 1):
        port = f"virtserialport,bus=ports.0,nr={number},chardev={name},name={name}"
        arguments += ["-device", port]
    for tag, path, access in (("host", Path("/"), "on"), ("run", run, "off"), ("out", out, "off")):
        share = f"local,id={tag},path={_escaped(path)},readonly={access}"
        arguments += ["-fsdev", f"{share},security_model=none,multidevs=remap"]
        arguments += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    return arguments


def _escaped(path: Path) -> str:
    """A path inside an option: commas are doubled."""
    return str(path).replace(",", ",,")
