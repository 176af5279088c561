"""Builds the wheel for glibc 2.28, checks it, and installs it beside the tools.

The wheel is made of the source distribution, so that this is known to hold all that it takes.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from . import sdist, tools
from .paths import LOGS, REPOSITORY, REQUIREMENTS, TARGET, VENV, WHEELS
from .process import CommandError, Words, must, progress

PLATFORM = "manylinux_2_28"
QUICK_WHEELS = TARGET / "wheels-quick"
_STAMP = VENV / ".wheel"
_TOP = ("Cargo.toml", "Cargo.lock", "pyproject.toml", "README.md", "LICENSE")
# A development build trades speed of the code for speed of the build.
_QUICK = {
    "CARGO_PROFILE_RELEASE_LTO": "off",
    "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16",
    "CARGO_PROFILE_RELEASE_INCREMENTAL": "true",
}


def inputs() -> Iterator[Path]:
    """Every file that the wheel is made of."""
    yield from (path for name in _TOP if (path := REPOSITORY / name).exists())
    for folder in ("crates", "python"):
        for path in sorted((REPOSITORY / folder).rglob("*")):
            inner = path.relative_to(REPOSITORY).parts
            hidden = any(part.startswith((".", "__pycache__")) for part in inner)
            if path.is_file() and not hidden:
                yield path


def fingerprint() -> str:
    """A hash of the inputs and the tools."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes())
    for path in inputs():
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(REPOSITORY)} {content}\n".encode())
    return digest.hexdigest()


def ensure(*, quick: bool = False) -> Path:
    """The wheel of the sources as they are, built and installed if it is not yet."""
    TARGET.mkdir(exist_ok=True)
    with (TARGET / "build.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tools.ensure()
        now = fingerprint()
        wheel = _installed(now, quick=quick)
        return wheel or _build_and_install(now, quick=quick)


def _installed(now: str, *, quick: bool) -> Path | None:
    """The wheel that is installed, if it is made of the sources; a full one serves as quick."""
    if not _STAMP.exists():
        return None
    then, mode, name = _STAMP.read_text().splitlines()
    wheel = Path(name)
    right_mode = mode == "sdist" or (quick and mode == "quick")
    return wheel if then == now and right_mode and wheel.exists() else None


def _build_and_install(now: str, *, quick: bool) -> Path:
    start = time.monotonic()
    progress(f"build: building the wheel{' (quick)' if quick else f' for {PLATFORM}'}")
    wheel = _build(quick=quick)
    if not quick:
        check(wheel)
    pip: Words = [
        tools.tool("python"),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
    ]
    install: Words = [*pip, "--force-reinstall", "--no-deps", "--no-index", wheel]
    must(install, "installing the wheel", LOGS / "wheel-install.log")
    _STAMP.write_text(f"{now}\n{'quick' if quick else 'sdist'}\n{wheel}\n")
    progress(f"build: {wheel.name}, {time.monotonic() - start:.0f} s")
    return wheel


def _build(*, quick: bool) -> Path:
    folder = QUICK_WHEELS if quick else WHEELS
    folder.mkdir(exist_ok=True)
    for old in folder.glob("vmlet-*.whl"):
        old.unlink()
    log = LOGS / "wheel-build.log"
    source = REPOSITORY if quick else sdist.unpacked(log)
    command: Words = [tools.tool("maturin"), "build", "--release", "--out", folder]
    command = [*command, "--interpreter", tools.tool("python")]
    target = ["--compatibility", "linux"] if quick else ["--zig", "--compatibility", PLATFORM]
    settings = [f"{name}={value}" for name, value in _QUICK.items()] if quick else []
    settings += [f"PATH={VENV / 'bin'}:{os.environ['PATH']}", f"CARGO_TARGET_DIR={TARGET}"]
    must(["env", f"--chdir={source}", *settings, *command, *target], "maturin build", log)
    (wheel,) = folder.glob("vmlet-*.whl")
    return wheel


def check(wheel: Path) -> None:
    """Fail unless the packaging tool agrees that the wheel runs on glibc 2.28."""
    shown = subprocess.run(
        [tools.tool("auditwheel"), "show", wheel], capture_output=True, text=True, check=False
    )
    (LOGS / "auditwheel.log").write_text(shown.stdout + shown.stderr)
    found = re.search(r'"manylinux_2_(\d+)_x86_64"', shown.stdout.replace("\n", " "))
    if shown.returncode or not found or int(found[1]) > 28:
        raise CommandError(f"auditwheel does not take {wheel.name} for {PLATFORM}:\n{shown.stdout}")
    progress(f"build: auditwheel takes the wheel for manylinux_2_{found[1]}_x86_64")


def main(arguments: list[str]) -> int:
    """Build what is not built; print the wheel's path."""
    parser = argparse.ArgumentParser(prog="ci/build", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="for development: any glibc, no LTO")
    print(ensure(quick=parser.parse_args(arguments).quick))
    return 0
