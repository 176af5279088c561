"""Tests that run once more: alone where only one or two of a step failed, and all of them where the
machine they ran in ended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .outcome import Failure
from .process import Words
from .schedule import MachineEnded, Report, StepFailed

#: The most failed tests of a step that run once more.
_ONCE_MORE = 2
#: How often a machine that ended is started again.
_MORE_MACHINES = 2

RunTests = Callable[[Path, Words], None]
"""Runs the tests that are chosen, all where none are; told to a log."""


def steady(run_tests: RunTests, log: Path, report: Report, name: Callable[[Failure], str]) -> None:
    """Runs all tests, and once more the one or two that failed, by `name`.

    Steps share the host's processors, and the lab's emulator has races of its own, which end a
    guest in one test of thousands. The report shows what failed first; what fails again, or in
    number, has failed.
    """
    try:
        _started_again(run_tests, log, report, [])
    except StepFailed:
        first = report.failures
        names: Words = list(dict.fromkeys(map(name, first)))
        if not 0 < len(names) <= _ONCE_MORE:
            raise
        report.failures = []
        for tally in report.tallies.values():
            tally.failed = 0
        _started_again(run_tests, _beside(log, "again"), report, names)
        report.unsteady += first


def _started_again(run_tests: RunTests, log: Path, report: Report, chosen: Words) -> None:
    """Again where the emulated machine stood still or ended, as it can before anything of ours
    runs in it."""
    for number in range(1, _MORE_MACHINES + 1):
        try:
            return run_tests(log, chosen)
        except MachineEnded as error:
            report.remark = f"{error}: the emulated machine stood still or ended; started again"
        log = _beside(log, f"machine-{number + 1}")
    return run_tests(log, chosen)


def _beside(log: Path, what: str) -> Path:
    """A log of its own for another run, empty."""
    other = log.with_stem(f"{log.stem}-{what}")
    other.unlink(missing_ok=True)
    return other
