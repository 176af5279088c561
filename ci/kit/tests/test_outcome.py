"""Counts are read from what test runners really print."""

from __future__ import annotations

from pathlib import Path

from kit.outcome import (
    Failure,
    Skip,
    ended_early,
    failures_of_cargo,
    failures_of_junit,
    of_cargo,
    of_junit,
)

CARGO = """\
     Running unittests src/lib.rs (target/debug/deps/vmlet_memory-0123456789abcdef)

running 3 tests
test a ... ok
test b ... ignored, needs a week
test c ... ok

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s

     Running tests/tiny_guests/main.rs (target/debug/deps/tiny_guests-0123456789abcdef)

running 2 tests
test modes::x ... ok
test modes::y ... FAILED

successes:

---- modes::x stdout ----
SKIPPED modes::x: /dev/kvm cannot be opened

failures:

---- modes::y stdout ----
seed 7

thread 'modes::y' panicked at src/modes.rs:9:5:
left: 1

failures:
    modes::y

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s

error: test failed, to rerun pass `-p vmlet-machine --test tiny_guests`
   Doc-tests vmlet_memory

running 0 tests

test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
"""

CRASH = """\
     Running tests/slots.rs (target/debug/deps/slots-0123456789abcdef)

running 1 test
error: test failed, to rerun pass `-p vmlet-machine --test slots`

Caused by:
  process didn't exit successfully: `slots` (signal: 6, SIGABRT: process abort signal)
"""

JUNIT = """\
<testsuites><testsuite name="pytest">
<testcase classname="tests.test_boot" name="test_a"/>
<testcase classname="tests.test_boot" name="test_b"><skipped message="needs linux: no"/></testcase>
<testcase classname="tests.test_cli" name="test_c"><failure message="no">def test_c():
    one()
E   no: 1</failure></testcase>
<testcase classname="tests.test_cli" name="test_d"><error message="no"/></testcase>
</testsuite></testsuites>
"""


def test_groups_of_cargo_test_are_its_binaries() -> None:
    found = of_cargo(CARGO)
    assert set(found) == {"unit memory", "tiny guests"}
    memory = found["unit memory"]
    assert (memory.passed, memory.failed) == (2, 0)
    assert memory.skips == [Skip("b", "needs a week")]


def test_a_rust_test_that_says_it_was_skipped_has_not_passed() -> None:
    guests = of_cargo(CARGO)["tiny guests"]
    assert (guests.passed, guests.failed) == (0, 1)
    assert guests.skips == [Skip("modes::x", "/dev/kvm cannot be opened")]


def test_a_failed_rust_test_is_named_with_its_panic() -> None:
    panic = ("thread 'modes::y' panicked at src/modes.rs:9:5:", "left: 1")
    assert failures_of_cargo(CARGO) == [Failure("modes::y", panic)]


def test_a_program_that_crashed_is_no_failed_test() -> None:
    assert [ended_early(text) for text in (CARGO, CRASH, CARGO + CRASH)] == [False, True, True]


def test_groups_of_pytest_are_its_files(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(JUNIT)
    found = of_junit(report)
    assert found["test_boot"].passed == 1
    assert found["test_boot"].skips == [Skip("test_boot::test_b", "needs linux: no")]
    assert found["test_cli"].failed == 2
    assert failures_of_junit(report) == [
        Failure("tests.test_cli::test_c", ("E   no: 1",)),
        Failure("tests.test_cli::test_d"),
    ]
