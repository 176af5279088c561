"""Steps that run Python: the scripts' own tests, the package's here and in the lab, the demo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from labkit.runner import LAB_FAILED

from . import outcome, place
from .paths import LOGS, REPOSITORY, TARGET
from .process import TIMED_OUT, Words, run
from .schedule import MachineEnded, Report, Step, StepFailed
from .steady import steady
from .tools import tool

#: One machine of each of these runs at a time: the one that most tests are in, and those with
#: devices to pass on.
_LAB, _LAB_WITH_DEVICES = ("lab",), ("lab with devices",)
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
    "test_vfio_failure",
    "test_vfio_groups",
    "test_vfio_guest",
    "test_vfio_nics",
    "test_vfio_refusals",
    "test_vfio_user",
)
#: An ordinary user does that, among the tests of `test_vfio_user`.
_BY_A_USER = (
    "--deselect",
    "tests/test_vfio_guest.py::test_debian_drives_it_and_lets_go_of_it_again_and_again",
)
#: A controller that shares its queues, which a machine of its own has.
_SHARED_QUEUES = ("test_vfio_nvme",)
#: What of that runs behind other IOMMUs, and by iommufd, whose own tests are with it.
_IOMMUFD = "test_vfio_iommufd"
_KVM = ("-k", "not soft and not debian and not a_user_is_told")
_ELSEWHERE: dict[str, tuple[str, ...]] = {
    "iommufd": (
        f"tests/{_IOMMUFD}.py",
        "tests/test_vfio.py",
        "tests/test_vfio_groups.py",
        "tests/test_vfio_nics.py::test_two_guests_with_virtual_functions_reach_the_card_and_each_other",
        # Which wait until the kernel logs again.
        *("-k", "not just_unmapped and not not_present"),
    ),
    "viommu": (
        "tests/test_vfio_refusals.py::test_interrupts_that_are_not_remapped_have_to_be_allowed_in_so_many_words",
        *("tests/test_vfio.py", "tests/test_vfio_guest.py", *_KVM),
    ),
    "amdvi": ("tests/test_vfio.py", "tests/test_vfio_guest.py", *_KVM),
}
#: What takes ten times as long to make in the lab, which finds it made.
_MADE = """
import pathlib, sys
from guests import program, roots
program("vsock")
roots.kept(pathlib.Path(sys.argv[1]))
"""
#: A test that stands still for so many seconds shows where, in the step's log.
_STANDS_STILL = "faulthandler_timeout=200"
#: A machine that says nothing for so many seconds stands still itself: in the longest step, and in
#: the others.
_SILENCE = ("--silence", "420")
_SHORT_SILENCE = ("--silence", "240")
#: Seconds for all tests of a place that is slower than others.
_LIMITS = {"lab intel": 3 * 3600}
#: It asks a few things, in seconds.
_DOCTOR = ("--doctor", "--timeout", "120", "--silence", "60")
#: Two steps run at once: a test that waits for something gets that much more time.
_HOST_FACTOR = "3"


def _pytest(log: Path, report: Report, where: str, command: Words, junit: Path) -> None:
    junit.unlink(missing_ok=True)
    options: Words = ["-q", "-ra", "--junitxml", junit, "-p", "no:cacheprovider"]
    options = [*options, "-o", _STANDS_STILL]
    env = {"VMLET_TIME_FACTOR": _HOST_FACTOR}
    status = run([*command, *options], log, timeout=_LIMITS.get(where, 3700), env=env)
    if junit.exists():
        report.count(outcome.of_junit(junit), where)
        report.failures += outcome.failures_of_junit(junit)
    if status:
        raise StepFailed(f"pytest ended with status {status}")


def _pytest_in_lab(log: Path, report: Report, where: str, command: Words, junit: Path) -> None:
    try:
        _pytest(log, report, where, command, junit)
    except StepFailed as error:
        if junit.exists():
            raise
        raise MachineEnded(str(error)) from error


def _scripts(log: Path, report: Report) -> None:
    command: Words = [tool("python"), "-B", "-m", "pytest", "ci/kit/tests", "ci/labkit/tests"]
    _pytest(log, report, "host", command, LOGS / "scripts.xml")


def _kernels(log: Path, report: Report) -> None:
    found = place.kernels()
    made: Words = [tool("python"), "-B", "-c", _MADE, found["storage"]]
    if run(made, log, timeout=120, cwd=REPOSITORY / "tests"):
        raise StepFailed("a program or a disk for guests was not made")
    (TARGET / "kernels.txt").write_text("".join(f"{k}={v}\n" for k, v in found.items()))
    report.remark = ", ".join(
        name for name in found if name.startswith("linux") and "mod" not in name
    )


def _python(log: Path, report: Report) -> None:
    host = place.probe()
    report.remark = f"KVM {'runs kernels' if host.runs_kernels else f'limited: {host.detail}'}"
    tests: Words = ["tests", *(f"--ignore=tests/{name}.py" for name in _LINUX)]
    _on_host(log, report, tests, "python.xml")


def _python_linux(log: Path, report: Report) -> None:
    _on_host(log, report, [f"tests/{name}.py" for name in _LINUX], "python-linux.xml")


def _on_host(log: Path, report: Report, tests: Words, junit: str) -> None:
    def run_tests(log: Path, chosen: Words) -> None:
        command: Words = [tool("python"), "-B", "-m", "pytest", *(chosen or tests)]
        _pytest(log, report, "host", command, _junit(LOGS / junit, chosen))

    steady(run_tests, log, report, lambda failure: failure.node)


def _in_lab(log: Path, report: Report, how: Words, tests: Words, junit: str) -> None:
    """Runs tests in a flavour of the lab; `how` is that flavour and its limits."""
    out = TARGET / "lab-out" / str(how[0])
    out.mkdir(parents=True, exist_ok=True)
    lab: Words = [REPOSITORY / "ci" / "lab", *how, "--out", out]
    lab = [*lab, "--", "python", "-B", "-m", "pytest"]

    def run_tests(log: Path, chosen: Words) -> None:
        command = [*lab, *(chosen or tests)]
        _pytest_in_lab(log, report, f"lab {how[0]}", command, _junit(out / junit, chosen))

    steady(run_tests, log, report, lambda failure: failure.node)


def _junit(file: Path, chosen: Words) -> Path:
    """The report of the second run beside that of the first."""
    return file.with_stem(f"{file.stem}-again") if chosen else file


def _python_in_lab(log: Path, report: Report) -> None:
    others = (*_SAME_EVERYWHERE, *_PASSED_ON, *_SHARED_QUEUES, _IOMMUFD)
    ignored = (f"--ignore=tests/{name}.py" for name in others)
    limits = ("--timeout", "3600", *_SILENCE)
    _in_lab(log, report, (place.LAB, *limits), ["tests", *ignored], "python.xml")


def _python_in_intel_lab(log: Path, report: Report) -> None:
    # Its emulator has one thread and a clock of its own: this takes an hour or two.
    _in_lab(log, report, ("intel", "--timeout", "10000"), ["tests"], "python.xml")


def _passed_on(log: Path, report: Report) -> None:
    tests: Words = [*(f"tests/{name}.py" for name in _PASSED_ON), *_BY_A_USER]
    _in_lab(log, report, ("vtd", "--timeout", "900", *_SHORT_SILENCE), tests, "passed-on.xml")


def _shared_queues(log: Path, report: Report) -> None:
    tests: Words = [f"tests/{name}.py" for name in _SHARED_QUEUES]
    _in_lab(log, report, ("nvme", "--timeout", "480", *_SHORT_SILENCE), tests, "shared-queues.xml")


def _passed_on_elsewhere(flavour: str) -> Step:
    """A step in another flavour with devices to pass on."""

    def work(log: Path, report: Report) -> None:
        limits = (flavour, "--timeout", "600", *_SHORT_SILENCE)
        _in_lab(log, report, limits, _ELSEWHERE[flavour], "passed-on.xml")

    return _with_devices(f"python tests with devices passed on in {flavour}", work)


def _with_devices(name: str, work: Callable[[Path, Report], None]) -> Step:
    return Step(name, work, after=_BUILT, holds=_LAB_WITH_DEVICES, counts=True)


def _lab_itself(log: Path, report: Report) -> None:
    def examine(log: Path, _: Words) -> None:
        command: Words = [REPOSITORY / "ci" / "lab", *_DOCTOR]
        status = run(command, log, timeout=600)
        if status in (TIMED_OUT, LAB_FAILED):
            raise MachineEnded(f"the lab's check of itself ended with status {status}")
        lines = [line for line in log.read_text().splitlines() if line[:4] in ("ok  ", "FAIL")]
        good = sum(line.startswith("ok") for line in lines)
        report.count({"lab": outcome.Tally(good, len(lines) - good)}, f"lab {place.LAB}")
        if status or not lines:
            raise StepFailed("the lab's check of itself failed")

    steady(examine, log, report, lambda failure: failure.node)


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
    Step(
        "python tests in the Intel lab",
        _python_in_intel_lab,
        after=_BUILT,
        holds=("lab intel",),
        counts=True,
        full=True,
    ),
    _with_devices("python tests with devices passed on", _passed_on),
    _with_devices("python tests with NVMe", _shared_queues),
    *map(_passed_on_elsewhere, _ELSEWHERE),
    Step("lab itself", _lab_itself, after=("kernels",), holds=_LAB, counts=True),
    Step("demo", _demo, after=_BUILT),
)
