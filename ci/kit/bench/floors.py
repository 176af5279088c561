"""What benchmarks compile.

Floors: programs of bare ioctls, `floor/NAME.c` as target/bench/NAME-floor. Guests: flat code,
`subject/NAME.s` as target/bench/NAME.bin.
"""

from __future__ import annotations

from pathlib import Path

from ..paths import LOGS, TARGET
from ..process import Words, must

_HERE = Path(__file__).resolve().parent
_SOURCES = _HERE / "floor"


def floor(name: str) -> Path:
    """The program."""
    return TARGET / "bench" / f"{name}-floor"


def compile_floor(name: str) -> None:
    """Compile the program, if it is older than a source."""
    program = floor(name)
    newest = max(source.stat().st_mtime for source in _SOURCES.iterdir())
    if program.exists() and program.stat().st_mtime >= newest:
        return
    program.parent.mkdir(parents=True, exist_ok=True)
    command: Words = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program]
    must(
        [*command, _SOURCES / f"{name}.c", "-pthread"],
        f"compiling the floor of {name}",
        LOGS / f"bench-{name}-floor.log",
    )


def guest(name: str) -> Path:
    """The guest's code."""
    return TARGET / "bench" / f"{name}.bin"


def assemble_guest(name: str) -> None:
    """Assemble the guest's code, which has to need no linking."""
    log, code = LOGS / f"bench-{name}-guest.log", guest(name).with_suffix(".o")
    code.parent.mkdir(parents=True, exist_ok=True)
    source = _HERE / "subject" / f"{name}.s"
    must(["as", "--32", "-o", code, source], f"assembling the guest {name}", log)
    flat: Words = ["objcopy", "-O", "binary", "-j", ".text", code, guest(name)]
    must(flat, f"flattening the guest {name}", log)
