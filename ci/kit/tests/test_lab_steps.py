"""The step that runs tests in an emulated machine, with a script in place of the machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kit import steps_python
from kit.process import Words
from kit.schedule import Report, StepFailed

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
case = f'<testcase classname="tests.test_a" name="test_b[kvm]">{{failure}}</testcase>'
junit.write_text(f"<testsuite>{{case}}</testsuite>")
sys.exit(1 if said else 0)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the machine lies."""
    return tmp_path


def _run(folder: Path, *said: str | None) -> tuple[Report, list[str]]:
    """A step in a machine whose runs say this: nothing for a pass, None for none at all."""
    (folder / "machine.py").write_text(_MACHINE.format(said=said))
    machine: Words = [sys.executable, folder / "machine.py"]
    report = Report()
    junit = folder / "junit.xml"
    try:
        steps_python._pytest_in_lab(folder / "log", report, "lab", machine, ["tests"], junit)
    except StepFailed as error:
        report.remark = f"failed: {error}"
    return report, (folder / "runs").read_text().splitlines()


def test_a_test_whose_guest_ended_runs_again_alone_and_the_report_tells(folder: Path) -> None:
    report, runs = _run(folder, _ENDED, "")
    assert runs == ["tests", "tests/test_a.py::test_b[kvm]"]
    assert report.failures == []
    assert report.tallies["test_a", "lab"].cell() == "1 passed"
    assert report.remark.startswith("passed in a second machine only")
    assert "tests/test_a.py::test_b[kvm]: E  vmlet.errors.GuestError" in report.remark


def test_a_guest_that_ends_twice_has_failed(folder: Path) -> None:
    report, runs = _run(folder, _ENDED, _ENDED)
    assert len(runs) == 2
    assert report.remark == "failed: pytest ended with status 1"
    assert [failure.test for failure in report.failures] == ["tests.test_a::test_b[kvm]"]


def test_what_fails_in_another_way_does_not_run_again(folder: Path) -> None:
    report, runs = _run(folder, "E  assert 1 == 2")
    assert runs == ["tests"]
    assert report.remark == "failed: pytest ended with status 1"
    assert report.tallies["test_a", "lab"].failed == 1


def test_a_machine_that_ended_is_started_again(folder: Path) -> None:
    report, runs = _run(folder, None, "")
    assert runs == ["tests", "tests"]
    assert "started again" in report.remark


def test_a_machine_that_ends_while_a_test_runs_again_is_started_again_too(folder: Path) -> None:
    report, runs = _run(folder, _ENDED, None, "")
    assert runs == ["tests", *["tests/test_a.py::test_b[kvm]"] * 2]
    assert report.tallies["test_a", "lab"].cell() == "1 passed"
    assert report.remark.startswith("passed in a second machine only")
