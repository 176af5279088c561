"""What the benchmarks of devices share: one guest a side, told what to do, under KVM in the lab.

Both sides boot the same kernel with the same program (`subject/NAMEload.c`), QEMU's as a microvm
without what it need not emulate. A row is a mode of the program; its cost is the guest's own time
an operation.
"""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from labkit import packages

from ..paths import LOGS, TARGET
from ..process import CommandError, Words, must
from ..tools import tool
from . import guests
from .rounds import Samples
from .statistics import low
from .worker import StoodStillError, Worker

_SUBJECT = Path(__file__).resolve().parent / "subject"
_RELEASE = "6.1"
CMDLINE = (
    "console=ttyS0 quiet panic=-1 reboot=t i8042.noaux i8042.nokbd tsc=reliable "
    "cryptomgr.notests=1 mitigations=off no_timer_check"
)
_QEMU = (
    *("-M", "microvm,pcie=on,pit=off,pic=off,rtc=on,kernel-irqchip=split,auto-kernel-cmdline=off"),
    *("-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", "256"),
    *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"),
)
LEAST, CAP = 10, 40
#: A batch takes a few seconds, and a guest boots in as many. The lab's emulator has guests that
#: stand still for ever, of either VMM: such a guest is started again, and said.
_STILL_SECONDS = 90.0
_MOST_STARTS = 3


@dataclass(frozen=True)
class Mode:
    """A row: a mode of the program, how many of its operations in a batch, the highest ratio."""

    row: str
    mode: str
    count: int
    limit: float


@dataclass(frozen=True)
class Program:
    """What a guest runs: `subject/NAMEload.c`, compiled, and packed as its initial file system."""

    name: str

    @property
    def compiled(self) -> Path:
        """The program."""
        return TARGET / "bench" / f"{self.name}load"

    @property
    def initrd(self) -> Path:
        """The initial file system."""
        return TARGET / "bench" / f"{self.name}.cpio"

    def prepare(self, release: str, kind: str, *drivers: str) -> None:
        """Have the kernels, compile the program and pack it with drivers of one of them."""
        guests.index()
        source = _SUBJECT / f"{self.name}load.c"
        compiler: Words = [
            "gcc",
            "-O2",
            "-Wall",
            "-Wextra",
            "-static",
            "-o",
            self.compiled,
            source,
        ]
        must(compiler, "compiling init", LOGS / f"bench-{self.name}load.log")
        pack: Words = [tool("python"), "-B", _SUBJECT / "initramfs.py", self.initrd, self.compiled]
        must(
            [*pack, guests.modules(release, kind), *drivers],
            "packing the initramfs",
            LOGS / "bench-initramfs.log",
        )

    def needed(self) -> list[Path]:
        """What `prepare` makes."""
        return [self.compiled, self.initrd, *guests.needed()[2:]]


@dataclass(frozen=True)
class Bench:
    """A program, the kernel modules it takes beside virtio_pci, and QEMU's flags for the device."""

    name: str
    module: str
    device: tuple[str, ...]
    modes: tuple[Mode, ...]
    #: What the host's end takes to listen.
    listens_by: str = ""

    @property
    def program(self) -> Program:
        """What the guest runs."""
        return Program(self.name)

    @property
    def qemu(self) -> Words:
        """QEMU's command without the images."""
        return [packages.QEMU, *_QEMU, *self.device]

    def prepare(self) -> None:
        """Have QEMU and the kernel, compile and pack the program."""
        self.program.prepare(_RELEASE, guests.CLOUD, "virtio_pci", self.module)

    def needed(self) -> list[Path]:
        """What `prepare` makes."""
        return self.program.needed()

    @contextmanager
    def host_end(self, *words: Path) -> Iterator[None]:
        """The host's end of the streams, until the block ends."""
        command: Words = [self.program.compiled, "serve", *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            try:
                if process.stdout.readline() != b"=serving\n":
                    raise CommandError(f"the host's end does not listen; {self.listens_by}")
                yield
            finally:
                process.kill()

    def ours(self, *words: str | Path, cmdline: str = CMDLINE) -> Words:
        """The command of the side with vmlet; ``words`` are the subject's own."""
        return self._command("vmlet", words, cmdline)

    def theirs(self, *words: str | Path, cmdline: str = CMDLINE, more: Words = ()) -> Words:
        """The command of the side with QEMU and ``more`` of its flags."""
        return [*self._command("qemu", words, cmdline), "--", *self.qemu, *more]

    def _command(self, side: str, words: Sequence[str | Path], cmdline: str) -> Words:
        program: Words = [tool("python"), "-B", _SUBJECT / f"{self.name}.py", side, *words]
        return [*program, guests.kernel(_RELEASE), self.program.initrd, cmdline]


@dataclass
class Side:
    """One guest that has paid what is paid once, and what its VMM takes beside it."""

    worker: Worker
    modes: Sequence[Mode]
    prefix: str = ""
    beside: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    stood_still: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Warm up."""
        self.batch()
        self.beside.clear()

    def batch(self) -> Samples:
        """One batch of each mode: microseconds an operation."""
        cold = False
        while True:
            try:
                if cold:
                    self._batch(defaultdict(list))
                return self._batch(self.beside)
            except StoodStillError:
                if len(self.stood_still) > _MOST_STARTS:
                    raise
                self.worker.start_again()
                cold = True

    def _batch(self, beside: dict[str, list[float]]) -> Samples:
        samples = {}
        for mode in self.modes:
            row = self.prefix + mode.row
            took, more = self._asked(mode, row)
            samples[row] = [took / mode.count / 1e3]
            beside[row].append(more / mode.count / 1e3)
        return samples

    def _asked(self, mode: Mode, row: str) -> tuple[int, int]:
        try:
            question = f"{mode.mode} {mode.count}"
            ((took, beside),) = self.worker.ask(question, 1, within=_STILL_SECONDS)
        except StoodStillError:
            self.stood_still.append(row)
            raise
        return took, beside


def tell(sides: Mapping[str, Sequence[Side]], told: Callable[[str], None]) -> None:
    """Say what each VMM took beside its vCPUs."""
    for name, group in sides.items():
        for side in group:
            for row, times in side.beside.items():
                told(f"{row}: {low(times):.1f} us of processor an operation in {name} beside vCPUs")
            if side.stood_still:
                told(f"{name} was started again: its guest stood still in {side.stood_still}")
