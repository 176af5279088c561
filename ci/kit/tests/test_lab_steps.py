"""The step that runs tests in an emulated machine, with a script in place of the machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kit import steps_python
from kit.process import Words
from kit.schedule import Report, StepFailed
from kit.steady import steady

_ENDED = "E  vmlet.errors.GuestError: the guest's run ended by triple-fault before x was printed"
_MACHINE = """
import pathlib, sys
arguments = sys.argv[1:]
runs = pathlib.Path(__file__).parent / "runs"
with runs.open("a") as file:
    file.write(" ".join(a for a in arguments if a.startswith("tests")) + "\\n")
number = len(runs.read_text().splitlines())
said = {said!r}[number - 1]
if said is None:
    sys.exit(125)
junit = pathlib.Path(arguments[arguments.index("--junitxml") + 1])
failure = f"<failure>{{said}}</failure>" if said else ""
names = ["b[kvm]", "c", "d"] if said == "three" else ["b[kvm]"]
case = '<testcase classname="tests.test_a" name="test_{{}}">{{}}</testcase>'
cases = "".join(case.format(name, failure) for name in names)
junit.write_text(f"<testsuite>{{cases}}</testsuite>")
sys.exit(1 if said else 0)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the machine lies."""
    return tmp_path


def _run(folder: Path, *said: str | None) -> tuple[Report, list[str]]:
    """A step in a machine whose runs say this: nothing for a pass, None for none at all."""
    (folder / "machine.py").write_text(_MACHINE.format(said=said))
    report = Report()

    def run_tests(log: Path, chosen: Words) -> None:
        machine: Words = [sys.executable, folder / "machine.py", *(chosen or ["tests"])]
        junit = steps_python._junit(folder / "junit.xml", chosen)
        steps_python._pytest_in_lab(log, report, "lab", machine, junit)

    try:
        steady(run_tests, folder / "log", report, lambda failure: failure.node)
    except StepFailed as error:
        report.remark = f"failed: {error}"
    return report, (folder / "runs").read_text().splitlines()


def test_a_test_that_failed_runs_once_more_alone_and_the_report_shows_how(folder: Path) -> None:
    report, runs = _run(folder, _ENDED, "")
    assert runs == ["tests", "tests/test_a.py::test_b[kvm]"]
    assert report.failures == []
    assert report.tallies["test_a", "lab"].cell() == "1 passed"
    assert [failure.lines for failure in report.unsteady] == [(_ENDED,)]


def test_a_test_that_fails_twice_has_failed(folder: Path) -> None:
    report, runs = _run(folder, _ENDED, "E  assert 1 == 2")
    assert len(runs) == 2
    assert report.remark == "failed: pytest ended with status 1"
    assert [failure.test for failure in report.failures] == ["tests.test_a::test_b[kvm]"]
    assert report.unsteady == []


def test_more_failures_than_two_do_not_run_again(folder: Path) -> None:
    report, runs = _run(folder, "three")
    assert runs == ["tests"]
    assert report.remark == "failed: pytest ended with status 1"
    assert report.tallies["test_a", "lab"].failed == 3


def test_a_machine_that_ended_is_started_again(folder: Path) -> None:
    report, runs = _run(folder, None, "")
    assert runs == ["tests", "tests"]
    assert "started again" in report.remark


def test_a_machine_that_ends_three_times_has_failed(folder: Path) -> None:
    report, runs = _run(folder, None, None, None)
    assert len(runs) == 3
    assert report.remark == "failed: pytest ended with status 125"


def test_a_machine_that_ends_while_a_test_runs_again_is_started_again_too(folder: Path) -> None:
    report, runs = _run(folder, _ENDED, None, "")
    assert runs == ["tests", *["tests/test_a.py::test_b[kvm]"] * 2]
    assert report.tallies["test_a", "lab"].cell() == "1 passed"
    assert len(report.unsteady) == 1
