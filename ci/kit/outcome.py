"""What a test run says of itself: counts, and the skipped tests by name."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_RUNNING = re.compile(r"^\s+Running (?:unittests )?(\S+) \(\S*?/deps/(\w+)-[0-9a-f]+\)")
_DOCTESTS = re.compile(r"^\s+Doc-tests (\w+)")
_RESULT = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored;")
_SKIPPED = re.compile(r"^SKIPPED (.+?): (.*)")
_IGNORED = re.compile(r"^test (\S+) \.\.\. ignored(?:, (.*))?")
_FAILED = re.compile(r"^test (\S+)(?: - should panic)? \.\.\. FAILED")
_OUTPUT = re.compile(r"^---- (\S+)(?: stdout)? ----$")
_SHOWN_LINES = 12


@dataclass(frozen=True)
class Skip:
    """A test that did not run, and why."""

    test: str
    reason: str


@dataclass(frozen=True)
class Failure:
    """A test that failed, and the few lines that say how."""

    test: str
    lines: tuple[str, ...] = ()

    @property
    def node(self) -> str:
        """What pytest calls a test of its own."""
        module, _, name = self.test.partition("::")
        return f"{module.replace('.', '/')}.py::{name}"


@dataclass
class Tally:
    """The counts of one group of tests in one place."""

    passed: int = 0
    failed: int = 0
    skips: list[Skip] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count `other` too."""
        self.passed += other.passed
        self.failed += other.failed
        self.skips += other.skips

    def ran(self) -> bool:
        """Whether there is a test that was not skipped."""
        return self.passed + self.failed > 0

    def cell(self) -> str:
        """The counts in a few characters."""
        parts = [f"{self.passed} passed"]
        if self.failed:
            parts.append(f"{self.failed} FAILED")
        if self.skips:
            parts.append(f"{len(self.skips)} skipped")
        return ", ".join(parts)


def of_cargo(text: str) -> dict[str, Tally]:
    """The groups in what `cargo test` or a test binary printed, by source of the binary.

    A Rust test that finds it cannot run here prints `SKIPPED name: reason`; the harness counts it
    as passed, so it is taken off again.
    """
    tallies: dict[str, Tally] = {}
    group = "tests"
    for line in text.splitlines():
        group = _cargo_group(line) or group
        tally = tallies.setdefault(group, Tally())
        if found := _RESULT.match(line):
            tally.passed += int(found[1])
            tally.failed += int(found[2])
        elif (found := _SKIPPED.match(line)) and found[1] not in {s.test for s in tally.skips}:
            tally.skips.append(Skip(found[1], found[2]))
            tally.passed -= 1
        elif found := _IGNORED.match(line):
            tally.skips.append(Skip(found[1], found[2] or "ignored"))
    return {name: tally for name, tally in tallies.items() if tally != Tally()}


def _cargo_group(line: str) -> str | None:
    if found := _RUNNING.match(line):
        source, binary = found[1], found[2]
        inside = source.startswith("src/")
        return f"unit {binary.removeprefix('vmlet_')}" if inside else binary.replace("_", " ")
    if found := _DOCTESTS.match(line):
        return f"doc {found[1].removeprefix('vmlet_')}"
    return None


def of_junit(path: Path) -> dict[str, Tally]:
    """The groups in a JUnit report of pytest: one a test file."""
    tallies: dict[str, Tally] = {}
    for case in ET.parse(path).getroot().iter("testcase"):
        group = case.get("classname", "").split(".")[-1] or case.get("name", "")
        tally = tallies.setdefault(group, Tally())
        tally.add(_of_case(case, group))
    return tallies


def _of_case(case: ET.Element, group: str) -> Tally:
    skipped = case.find("skipped")
    if skipped is not None:
        return Tally(skips=[Skip(f"{group}::{case.get('name')}", skipped.get("message", ""))])
    if case.find("failure") is not None or case.find("error") is not None:
        return Tally(failed=1)
    return Tally(passed=1)


def failures_of_cargo(text: str) -> list[Failure]:
    """The failed tests in what `cargo test` or a test binary printed."""
    printed: dict[str, list[str]] = {}
    names, shown = [], None
    for line in text.splitlines():
        if found := _FAILED.match(line):
            names.append(found[1])
        elif found := _OUTPUT.match(line):
            shown = printed[found[1]] = []
        elif line.startswith(("failures:", "successes:")):
            shown = None
        elif shown is not None and line.strip():
            shown.append(line)
    return [Failure(name, _short(printed.get(name, []), "panicked at")) for name in names]


def ended_early(text: str) -> bool:
    """Whether a test program of those that `cargo test` ran crashed: it ended without a result."""
    return text.count(", to rerun pass ") > text.count("test result: FAILED")


def failures_of_junit(path: Path) -> list[Failure]:
    """The failed tests of a JUnit report."""
    found = []
    for case in ET.parse(path).getroot().iter("testcase"):
        for ending in (*case.iter("failure"), *case.iter("error")):
            lines = [line for line in (ending.text or "").splitlines() if line.strip()]
            name = f"{case.get('classname')}::{case.get('name')}"
            found.append(Failure(name, _short(lines, "E  ")))
    return found


def _short(lines: Sequence[str], mark: str) -> tuple[str, ...]:
    """From the first line with `mark` on; the last ones where none has it."""
    begin = next((at for at, line in enumerate(lines) if mark in line), None)
    kept = lines[-_SHOWN_LINES:] if begin is None else lines[begin : begin + _SHOWN_LINES]
    return tuple(line[:300] for line in kept)
