"""Steps that run Python: the scripts' own tests, the package's here and in the lab, the demo."""

from __future__ import annotations

from pathlib import Path

from . import outcome, place
from .paths import LOGS, REPOSITORY, TARGET
from .process import Words, run
from .schedule import Report, Step, StepFailed
from .tools import tool

_LAB = ("lab",)
#: Fetching packages and the command line: they start many programs, which is slow in the lab.
_SAME_EVERYWHERE = ("test_kernels", "test_cli_kernel", "test_cli_run")
#: Those that boot Linux on the software CPU where the host's KVM does not: the longer half, so that
#: both lanes have work.
_LINUX = ("test_boot", "test_counted_linux", "test_soft_linux", "test_userland")
#: Devices that are passed on, which the lab's second machine has.
_PASSED_ON = (
    "test_inventory",
    "test_sriov",
    "test_vfio",
    "test_vfio_guest",
    "test_vfio_nics",
    "test_vfio_refusals",
)
#: The most guests that end by themselves in one run of the lab before that is a finding.
_ENDED_GUESTS = 2
#: A test that stands still for so many seconds shows where, in the step's log.
_STANDS_STILL = "faulthandler_timeout=300"
#: A machine that says nothing for so many seconds stands still itself.
_SILENCE = ("--silence", "420")
#: Two steps run at once: a test that waits for something gets that much more time.
_HOST_FACTOR = "3"


def _pytest(log: Path, report: Report, where: str, command: Words, junit: Path) -> None:
    junit.unlink(missing_ok=True)
    options: Words = ["-q", "-ra", "--junitxml", junit, "-p", "no:cacheprovider"]
    options = [*options, "-o", _STANDS_STILL]
    status = run([*command, *options], log, timeout=3700, env={"VMLET_TIME_FACTOR": _HOST_FACTOR})
    if junit.exists():
        report.count(outcome.of_junit(junit), where)
        report.failures += outcome.failures_of_junit(junit)
    if status:
        raise StepFailed(f"pytest ended with status {status}")


def _pytest_in_lab(
    log: Path, report: Report, where: str, lab: Words, tests: Words, junit: Path
) -> None:
    """Once more where the emulated machine stood still or ended, as it does once in some twenty
    runs, also before anything of ours runs in it; and so for the guests in it. What fails in
    another way, or again, stays failed."""
    try:
        _in_machine(log, report, where, [*lab, *tests], junit)
    except StepFailed:
        if not junit.exists():
            raise
        ended = [failure for failure in report.failures if outcome.is_ended_guest(failure)]
        if len(ended) < len(report.failures) or not 0 < len(ended) <= _ENDED_GUESTS:
            raise
        _again(log, report, where, lab, junit)


def _in_machine(log: Path, report: Report, where: str, command: Words, junit: Path) -> None:
    try:
        _pytest(log, report, where, command, junit)
    except StepFailed as error:
        if junit.exists():
            raise
        report.remark = f"{error}: the emulated machine stood still or ended; started again"
        _pytest(log, report, where, command, junit)


def _again(log: Path, report: Report, where: str, lab: Words, junit: Path) -> None:
    """What failed once more, in a machine of its own; the report tells how it failed first."""
    first = report.failures
    report.failures = []
    for tally in report.tallies.values():
        tally.failed = 0
    tests: Words = [failure.node for failure in first]
    again = log.with_stem(f"{log.stem}-again")
    _in_machine(again, report, where, [*lab, *tests], junit.with_stem(f"{junit.stem}-again"))
    told = "; ".join(f"{failure.node}: {' '.join(failure.lines[:1])}" for failure in first)
    report.remark = f"passed in a second machine only, for the guest had ended: {told}"


def _scripts(log: Path, report: Report) -> None:
    command: Words = [tool("python"), "-B", "-m", "pytest", "ci/kit/tests", "ci/labkit/tests"]
    _pytest(log, report, "host", command, LOGS / "scripts.xml")


def _kernels(log: Path, report: Report) -> None:
    found = place.kernels()
    (TARGET / "kernels.txt").write_text("".join(f"{k}={v}\n" for k, v in found.items()))
    report.remark = ", ".join(
        name for name in found if name.startswith("linux") and "mod" not in name
    )


def _python(log: Path, report: Report) -> None:
    host = place.probe()
    report.remark = f"KVM {'runs kernels' if host.runs_kernels else f'limited: {host.detail}'}"
    command: Words = [tool("python"), "-B", "-m", "pytest", "tests"]
    command = [*command, *(f"--ignore=tests/{name}.py" for name in _LINUX)]
    _pytest(log, report, "host", command, LOGS / "python.xml")


def _python_linux(log: Path, report: Report) -> None:
    command: Words = [tool("python"), "-B", "-m", "pytest"]
    command = [*command, *(f"tests/{name}.py" for name in _LINUX)]
    _pytest(log, report, "host", command, LOGS / "python-linux.xml")


def _in_lab(log: Path, report: Report, how: Words, tests: Words, junit: str) -> None:
    """Runs tests in a flavour of the lab; `how` is that flavour and its limits."""
    out = TARGET / "lab-out"
    out.mkdir(exist_ok=True)
    lab: Words = [REPOSITORY / "ci" / "lab", *how, "--out", out]
    lab = [*lab, "--", "python", "-B", "-m", "pytest"]
    _pytest_in_lab(log, report, f"lab {how[0]}", lab, tests, out / junit)


def _python_in_lab(log: Path, report: Report) -> None:
    ignored = (f"--ignore=tests/{name}.py" for name in (*_SAME_EVERYWHERE, *_PASSED_ON))
    limits = ("--timeout", "3600", *_SILENCE)
    _in_lab(log, report, (place.LAB, *limits), ["tests", *ignored], "python.xml")


def _passed_on(log: Path, report: Report) -> None:
    tests: Words = [f"tests/{name}.py" for name in _PASSED_ON]
    _in_lab(log, report, ("vtd", "--timeout", "480"), tests, "passed-on.xml")


def _lab_itself(log: Path, report: Report) -> None:
    status = run([REPOSITORY / "ci" / "lab", "--doctor"], log, timeout=600)
    lines = [line for line in log.read_text().splitlines() if line[:4] in ("ok  ", "FAIL")]
    good = sum(line.startswith("ok") for line in lines)
    report.count({"lab": outcome.Tally(good, len(lines) - good)}, f"lab {place.LAB}")
    if status or not lines:
        raise StepFailed("the lab's check of itself failed")


def _demo(log: Path, report: Report) -> None:
    status = run([REPOSITORY / "ci" / "demo"], log, timeout=600)
    lines = log.read_text().splitlines()
    said = [line for line in lines if line.startswith("Linux ")]
    if status or not said:
        raise StepFailed(f"the demo ended with status {status}")
    engine = next(line for line in lines if line.startswith("demo: engine "))
    report.remark = f"{engine.split()[2].rstrip(':')}: {said[0]}"


_BUILT = ("wheel", "kernels")
PYTHON = (
    Step("kernels", _kernels, holds=_LAB),
    Step("scripts", _scripts, counts=True),
    Step("python tests", _python, after=_BUILT, counts=True),
    Step("python tests with Linux", _python_linux, after=_BUILT, counts=True),
    Step("python tests in the lab", _python_in_lab, after=_BUILT, holds=_LAB, counts=True),
    Step("python tests with devices passed on", _passed_on, after=_BUILT, holds=_LAB, counts=True),
    Step("lab itself", _lab_itself, after=("kernels",), holds=_LAB, counts=True),
    Step("demo", _demo, after=_BUILT),
)
