"""Steps of the Rust workspace: lints, documentation, tests here and in the lab, fuzzing."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from . import fuzz, outcome
from .paths import REPOSITORY
from .process import CommandError, Words, output, run
from .schedule import MachineEnded, Report, Step, StepFailed
from .steady import steady
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
    command: Words = ["cargo", "test", "--workspace", "--locked", "--no-fail-fast"]

    def run_tests(log: Path, chosen: Words) -> None:
        status = run([*command, "--", "--show-output", *_exactly(chosen)], log, timeout=1200)
        text = log.read_text(errors="replace")
        report.count(outcome.of_cargo(text), "host")
        report.failures += outcome.failures_of_cargo(text)
        if outcome.ended_early(text):
            raise CommandError(f"cargo test ended with status {status}, a test program early")
        if status:
            raise StepFailed(f"cargo test ended with status {status}")

    steady(run_tests, log, report, lambda failure: failure.test)


def _tiny_guests_translated(log: Path, report: Report) -> None:
    # One at a time: some measure the memory of the process.
    command: Words = [tiny_guests(), "--show-output", "--test-threads", "1"]
    env = {"VMLET_TRANSLATE_AFTER": "1", "VMLET_TIME_FACTOR": "5"}

    def run_tests(log: Path, chosen: Words) -> None:
        status = run([*command, *_exactly(chosen)], log, timeout=900, env=env)
        _count(log, report, ("tiny guests, translated", "host"), status)

    steady(run_tests, log, report, lambda failure: failure.test)


def _tiny_guests_in_lab(log: Path, report: Report) -> None:
    options: Words = ["amd", "--timeout", "900"]
    _tiny_guests(log, report, "lab amd", options, ["sh", "-c", _WITH_GIBIBYTE_PAGE])


def _tiny_guests_on(model: str, log: Path, report: Report) -> None:
    options: Words = ["intel", "--cpu", model, "--timeout", "1500"]
    _tiny_guests(log, report, "lab intel", options, [])


def _tiny_guests(log: Path, report: Report, where: str, options: Words, shell: Words) -> None:
    lab: Words = [REPOSITORY / "ci" / "lab", *options, "--"]
    command = [*lab, *shell, tiny_guests(), "--show-output"]

    def run_tests(log: Path, chosen: Words) -> None:
        status = run([*command, *_exactly(chosen)], log, timeout=1800)
        if status and "test result:" not in log.read_text(errors="replace"):
            raise MachineEnded(f"the tiny guests ended with status {status}")
        _count(log, report, ("tiny guests", where), status)

    steady(run_tests, log, report, lambda failure: failure.test)


def _exactly(chosen: Words) -> Words:
    return ["--exact", *chosen] if chosen else []


def _count(log: Path, report: Report, told: tuple[str, str], status: int) -> None:
    group, where = told
    text = log.read_text(errors="replace")
    for tally in outcome.of_cargo(text).values():
        report.count({group: tally}, where)
    report.failures += outcome.failures_of_cargo(text)
    if status and "test result:" not in text:
        raise CommandError(f"the tiny guests ended early, with status {status}")
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


def _fuzz_build(log: Path, report: Report) -> None:
    fuzz.build()
    report.remark = f"{len(fuzz.targets())} targets"


def _fuzz(target: str, log: Path, report: Report) -> None:
    done = fuzz.run(target, _FUZZ_SECONDS, log)
    report.count({"fuzz targets": outcome.Tally(not done.crashed, done.crashed)}, "host")
    report.remark = f"{done.count} executions, {done.cov} edges"
    if done.crashed:
        raise StepFailed(f"an input crashed it: {done.artifact or 'none was kept'}")


RUST = (
    Step("rust tests", _tests, holds=_CARGO, counts=True),
    Step("clippy", _clippy, holds=_CARGO),
    Step("rustdoc", _rustdoc, holds=_CARGO),
    Step(
        "tiny guests, translated",
        _tiny_guests_translated,
        after=("rust tests",),
        counts=True,
    ),
    Step(
        "tiny guests in the lab",
        _tiny_guests_in_lab,
        after=("rust tests",),
        holds=("lab",),
        counts=True,
    ),
    *(
        Step(
            f"tiny guests on {model}",
            partial(_tiny_guests_on, model),
            after=("rust tests", "kernels"),
            holds=("lab intel",),
            counts=True,
            full=not nested_paging,
        )
        for model, nested_paging in (("corei7_haswell_4770", True), ("core2_penryn_t9600", False))
    ),
    Step("fuzz build", _fuzz_build),
    *(
        Step(f"fuzz {target}", partial(_fuzz, target), after=("fuzz build",), counts=True)
        for target in fuzz.targets()
    ),
)
