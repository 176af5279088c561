"""Runs the fuzz targets of `fuzz/`: coverage-guided, with hard limits on time and memory.

Inputs that reached something new are kept in `fuzz/corpus/TARGET` for the next run, an input that
crashed a target in `fuzz/artifacts/TARGET`.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import process
from .paths import LOGS, REPOSITORY
from .process import CommandError, Words, must, progress, tail

FOLDER = REPOSITORY / "fuzz"
CORPUS = FOLDER / "corpus"
ARTIFACTS = FOLDER / "artifacts"
PROGRAMS = FOLDER / "target" / "x86_64-unknown-linux-gnu" / "release"

# One input may take this long, in seconds, and a target this much memory, in MiB.
_INPUT_SECONDS = 10
_MEMORY = 2560
_STARTUP_SECONDS = 60
_EXECUTED = re.compile(r"^stat::number_of_executed_units: (\d+)", re.MULTILINE)
_COVERED = re.compile(r"\bcov: (\d+)")
_ARTIFACT = re.compile(r"^.*Test unit written to (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Executions:
    """What one run of a target did."""

    count: int
    """Inputs that were run."""
    cov: int
    """Edges of the code that were reached, by all inputs together."""
    crashed: bool
    """Whether an input crashed it, or took too long or too much memory."""
    artifact: Path | None = None
    """The input that did."""

    def line(self, target: str) -> str:
        """The run in a line."""
        result = f"CRASHED: {self.artifact or 'no input was kept'}" if self.crashed else "ok"
        return f"fuzz: {target:<14} {self.count:>9} executions, {self.cov:>5} edges: {result}"


def limits() -> dict[str, Mapping[str, object]]:
    """The table of targets in the manifest: their longest input and their dictionary."""
    manifest = tomllib.loads((FOLDER / "Cargo.toml").read_text())
    found: dict[str, Mapping[str, object]] = manifest["package"]["metadata"]["targets"]
    built = {entry["name"] for entry in manifest["bin"]}
    if built != found.keys():
        odd = ", ".join(sorted(built ^ found.keys()))
        raise CommandError(
            f"fuzz/Cargo.toml: a target without limits, or limits without one: {odd}"
        )
    return found


def targets() -> list[str]:
    """The names of the targets."""
    return sorted(limits())


def build() -> None:
    """Build all targets: optimized, with coverage, debug assertions and overflow checks."""
    progress("fuzz: building the targets")
    # Flags of the environment would replace those of fuzz/.cargo/config.toml.
    unset = [
        f"--unset={name}" for name in ("RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR")
    ]
    # Not --locked: the crates' dependencies are in this lock file too, and change with them.
    cargo = ["cargo", "build", "--release"]
    must(
        ["env", f"--chdir={FOLDER}", *unset, *cargo],
        "building the fuzz targets",
        LOGS / "fuzz-build.log",
    )


def run(target: str, seconds: int, log: Path) -> Executions:
    """Run a target that is built for some time; its output goes to `log`."""
    bounds = limits()[target]
    corpus, artifacts = CORPUS / target, ARTIFACTS / target
    for folder in (corpus, artifacts):
        folder.mkdir(parents=True, exist_ok=True)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="vmlet-fuzz-", dir=memory if os.access(memory, os.W_OK) else None
    ) as scratch:
        seeds = Path(scratch) / "seeds"
        seeds.mkdir()
        command: Words = [
            PROGRAMS / target,
            f"-max_total_time={seconds}",
            f"-max_len={bounds['max_len']}",
            f"-timeout={_INPUT_SECONDS}",
            f"-rss_limit_mb={_MEMORY}",
            f"-artifact_prefix={artifacts}/",
            "-print_final_stats=1",
            *_dictionary(bounds),
            corpus,
            seeds,
        ]
        begin = log.stat().st_size if log.exists() else 0
        env = {
            "TMPDIR": scratch,
            "VMLET_FUZZ_SEEDS": str(seeds),
            # The software CPU translates all that it can.
            "VMLET_TRANSLATE_AFTER": "1",
        }
        status = process.run(command, log, timeout=seconds + _STARTUP_SECONDS, env=env)
    with log.open("rb") as source:
        source.seek(begin)
        return read(source.read().decode(errors="replace"), status)


def _dictionary(bounds: Mapping[str, object]) -> list[str]:
    name = bounds.get("dictionary")
    return [f"-dict={FOLDER / 'dictionaries' / f'{name}.dict'}"] if name else []


def read(output: str, status: int) -> Executions:
    """What libFuzzer's output and exit status say."""
    executed = _EXECUTED.findall(output)
    covered = _COVERED.findall(output)
    artifact = _ARTIFACT.findall(output)
    count = int(executed[-1]) if executed else 0
    # A target that ran nothing is as bad as one that crashed: nothing was tried.
    return Executions(
        count=count,
        cov=int(covered[-1]) if covered else 0,
        crashed=status != 0 or count == 0,
        artifact=Path(artifact[-1]) if artifact else None,
    )


def reproduce(target: str, artifact: Path) -> str:
    """A command that runs a kept input again."""
    return f"{shlex.quote(str(PROGRAMS / target))} {shlex.quote(str(artifact))}"


def main(arguments: list[str]) -> int:
    """Build, run some targets or all, print executions; on a crash, how to see it again."""
    parser = argparse.ArgumentParser(prog="ci/fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", help="targets to run (all)")
    parser.add_argument("--seconds", type=int, default=20, help="for each target (20)")
    parser.add_argument("--list", action="store_true", help="print the targets' names")
    options = parser.parse_args(arguments)
    known = targets()
    if options.list:
        print(*known, sep="\n")
        return 0
    if unknown := [name for name in options.target if name not in known]:
        raise CommandError(f"there is no target {unknown[0]}; there are {', '.join(known)}")
    build()
    crashed = False
    for target in options.target or known:
        log = LOGS / f"fuzz-{target}.log"
        log.write_bytes(b"")
        found = run(target, options.seconds, log)
        print(found.line(target), flush=True)
        if found.crashed:
            crashed = True
            print(tail(log, 20))
            if found.artifact:
                print(f"fuzz: run it again: {reproduce(target, found.artifact)}")
    return 1 if crashed else 0
