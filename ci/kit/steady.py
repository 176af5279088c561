"""Tests that run once more, alone, where only one or two of a step failed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .outcome import Failure
from .process import Words
from .schedule import Report, StepFailed

#: The most failed tests of a step that run once more.
_ONCE_MORE = 2


def steady(
    run_tests: Callable[[Path, Words], None],
    log: Path,
    report: Report,
    name: Callable[[Failure], str],
) -> None:
    """Runs all tests, and once more the one or two that failed, by `name`.

    Steps share the host's processors, and the lab's emulator has races of its own, which end a
    guest in one test of thousands. The report shows what failed first; what fails again, or in
    number, has failed. `run_tests` gets a log and the tests that are chosen; none: all.
    """
    try:
        run_tests(log, [])
    except StepFailed:
        first = report.failures
        names: Words = list(dict.fromkeys(map(name, first)))
        if not 0 < len(names) <= _ONCE_MORE:
            raise
        report.failures = []
        for tally in report.tallies.values():
            tally.failed = 0
        run_tests(log.with_stem(f"{log.stem}-again"), names)
        report.unsteady += first
