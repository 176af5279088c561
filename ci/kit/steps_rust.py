"""Steps of the Rust workspace: lints, documentation, tests here and in the lab, fuzzing."""

from __future__ import annotations

import json
from pathlib import Path

from . import fuzz, outcome
from .paths import LOGS, REPOSITORY
from .process import Words, output, progress, run
from .schedule import Report, Step, StepFailed
from .steps_static import must_pass

# One build of the workspace at a time: they would wait for each other's lock anyway.
_CARGO = ("cargo",)
_FUZZ_SECONDS = 20
# A gibibyte in one piece is there right after L1 has started; later it may not be.
_WITH_GIBIBYTE_PAGE = """
echo 1 >/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages
export VMLET_REQUIRE="$VMLET_REQUIRE,hugetlb"
exec "$0" "$@"
"""


def _clippy(log: Path, report: Report) -> None:
    command = ["cargo", "clippy", "--workspace", "--all-targets", "--locked"]
    must_pass([*command, "--", "-D", "warnings"], log)


def _rustdoc(log: Path, report: Report) -> None:
    command = ["cargo", "doc", "--workspace", "--no-deps", "--locked"]
    must_pass(command, log, RUSTDOCFLAGS="-D warnings")


def _tests(log: Path, report: Report) -> None:
    command = ["cargo", "test", "--workspace", "--locked", "--no-fail-fast"]
    status = run([*command, "--", "--show-output"], log, timeout=1200)
    report.count(outcome.of_cargo(log.read_text(errors="replace")), "host")
    if status:
        raise StepFailed(f"cargo test ended with status {status}")


def _tiny_guests_in_lab(log: Path, report: Report) -> None:
    lab: Words = [REPOSITORY / "ci" / "lab", "amd", "--"]
    command: Words = [*lab, "sh", "-c", _WITH_GIBIBYTE_PAGE, tiny_guests(), "--show-output"]
    status = run(command, log, timeout=900)
    for tally in outcome.of_cargo(log.read_text(errors="replace")).values():
        report.count({"tiny guests": tally}, "lab amd")
    if status:
        raise StepFailed(f"the tiny guests ended with status {status}")


def tiny_guests() -> Path:
    """The test binary of the tiny guests, built if it is not."""
    command = ["cargo", "test", "--locked", "-p", "vmlet-machine", "--test", "tiny_guests"]
    status, told = output([*command, "--no-run", "--message-format", "json"], timeout=1200)
    if status:
        raise StepFailed("the tiny guests do not build; see the lines above")
    messages = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    found = [m["executable"] for m in messages if m.get("executable")]
    return Path(found[-1])


def _fuzz(log: Path, report: Report) -> None:
    fuzz.build()
    tally = outcome.Tally()
    executions = 0
    targets = fuzz.targets()
    for target in targets:
        done = fuzz.run(target, _FUZZ_SECONDS, LOGS / f"fuzz-{target}.log")
        with log.open("a") as sink:
            sink.write(f"{done.line(target)}\n")
        progress(done.line(target))
        executions += done.count
        tally.add(outcome.Tally(failed=1) if done.crashed else outcome.Tally(passed=1))
    report.count({"fuzz targets": tally}, "host")
    report.remark = f"{executions} executions of {len(targets)} targets"
    if tally.failed:
        raise StepFailed(f"{tally.failed} targets crashed")


RUST = (
    Step("rust tests", _tests, holds=_CARGO, counts=True),
    Step("clippy", _clippy, holds=_CARGO),
    Step("rustdoc", _rustdoc, holds=_CARGO),
    Step(
        "tiny guests in the lab",
        _tiny_guests_in_lab,
        after=("rust tests",),
        holds=("lab",),
        counts=True,
    ),
    Step("fuzz", _fuzz, counts=True),
)
