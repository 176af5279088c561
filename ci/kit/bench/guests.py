"""What benchmarks boot: kernels of Debian, one program as init."""

from __future__ import annotations

from pathlib import Path

from labkit import packages

from .. import place
from ..paths import LOGS, TARGET
from ..process import Words, must
from ..tools import tool

_SUBJECT = Path(__file__).resolve().parent / "subject"
_SOURCE = _SUBJECT / "kernels.rs"
PROGRAM = TARGET / "bench" / "kernels"
_INITRD = TARGET / "bench" / "kernels.cpio"
#: Kernels that are made for clouds; "" is for Debian's standard ones.
CLOUD = "-cloud"
_INDEX = TARGET / "bench" / "kernels.txt"  # the lab cannot fetch what is missing
# The same instructions everywhere: one static program, no vectors.
_FLAGS = ("-O", "-C", "panic=abort", "-C", "strip=symbols", "-C", "target-feature=+crt-static")
_SCALAR = ("-C", "no-vectorize-loops", "-C", "no-vectorize-slp")

RELEASES = ("6.1", "6.12")
# All messages on the console from the first on; what spares an interpreter seconds.
CMDLINE = (
    "console=ttyS0 earlyprintk=serial,ttyS0,115200 panic=-1 reboot=t i8042.noaux i8042.nokbd "
    "tsc=reliable cryptomgr.notests=1 mitigations=off no_timer_check"
)
QEMU = (
    *("-accel", "tcg", "-machine", "pc", "-smp", "1", "-m", "256"),
    *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"),
)


def prepare() -> None:
    """Have QEMU and the kernels, compile and pack the program."""
    index()
    rustc: Words = ["rustc", "--edition", "2024", *_FLAGS, *_SCALAR, "-o", PROGRAM, _SOURCE]
    must(rustc, "compiling the kernels", LOGS / "bench-kernels.log")
    pack: Words = [tool("python"), "-B", _SUBJECT / "initramfs.py", _INITRD, PROGRAM]
    must(pack, "packing the initramfs", LOGS / "bench-initramfs.log")


def index() -> None:
    """Have QEMU and the kernels, and note where those are."""
    packages.ensure_tools()
    _INDEX.parent.mkdir(parents=True, exist_ok=True)
    _INDEX.write_text("".join(f"{name}={path}\n" for name, path in place.kernels().items()))


def needed() -> list[Path]:
    """What `prepare` makes."""
    return [PROGRAM, _INITRD, _INDEX]


def kernel(release: str, kind: str = CLOUD) -> str:
    """The path of a kernel for clouds, or of Debian's standard one (kind "")."""
    return _known(f"linux-{release}{kind}")


def modules(release: str, kind: str = CLOUD) -> str:
    """The directory with the modules of that kernel."""
    return _known(f"linux-{release}{kind}-modules")


def _known(name: str) -> str:
    known = dict(line.split("=", 1) for line in _INDEX.read_text().splitlines())
    return known[name]


def _images(options: str = "") -> list[str | Path]:
    return [_INITRD, CMDLINE + options, *(kernel(release) for release in RELEASES)]


def subject(engine: str, options: str = "", *, cpus: int = 1, on: int | None = None) -> Words:
    """The command of the side with vmlet on `engine`, with more options of the guest's kernel.

    The last of its vCPUs has processor `on` to itself.
    """
    shape: Words = ["--cpus", str(cpus), *(["--on", str(on)] if on is not None else [])]
    return [tool("python"), "-B", _SUBJECT / "linux.py", *shape, engine, *_images(options)]


def tcg() -> Words:
    """The command of the side with QEMU."""
    return [tool("python"), "-B", _SUBJECT / "tcg.py", *_images(), "--", *QEMU]


def native(on: int | None = None) -> Words:
    """The command of the side with the host itself, on that one processor of it."""
    program: Words = [PROGRAM, *([str(on)] if on is not None else [])]
    return [tool("python"), "-B", _SUBJECT / "native.py", *program]


def qemu() -> str:
    """What QEMU is and how it is called."""
    return f"{packages.qemu_version()}: {packages.QEMU} {' '.join(QEMU)} -append '{CMDLINE}'"
