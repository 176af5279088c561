"""Steps run in order, side by side where they may, and their table tells the truth."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from kit import process, report
from kit.outcome import Skip, Tally
from kit.schedule import Done, Report, Schedule, Step, StepFailed, StepSkipped


def nothing(log: Path, told: Report) -> None:
    """A step that passes."""


def fails(log: Path, told: Report) -> None:
    raise StepFailed("no")


def skips(log: Path, told: Report) -> None:
    raise StepSkipped("not here")


def states(steps: list[Step], folder: Path, lanes: int = 2) -> dict[str, str]:
    return {done.step.name: done.state for done in Schedule(steps, folder, lanes).run()}


def test_a_step_whose_need_failed_does_not_run(tmp_path: Path) -> None:
    steps = [
        Step("c", nothing, after=("b",)),
        Step("b", nothing, after=("a",)),
        Step("a", fails),
        Step("d", nothing),
    ]
    assert states(steps, tmp_path) == {"a": "FAILED", "b": "not run", "c": "not run", "d": "ok"}


def test_a_run_ends_when_its_last_step_cannot_run(tmp_path: Path) -> None:
    steps = [Step("a", fails), Step("b", nothing, after=("a",))]
    assert states(steps, tmp_path, lanes=1) == {"a": "FAILED", "b": "not run"}


def test_a_skipped_step_does_not_stop_who_waits_for_it(tmp_path: Path) -> None:
    steps = [Step("a", skips), Step("b", nothing, after=("a",))]
    assert states(steps, tmp_path) == {"a": "skipped", "b": "ok"}


def test_a_defect_of_a_step_is_its_failure(tmp_path: Path) -> None:
    def broken(log: Path, told: Report) -> None:
        raise KeyError("x")

    assert states([Step("a", broken)], tmp_path) == {"a": "FAILED"}


def test_two_steps_that_hold_the_same_thing_never_overlap(tmp_path: Path) -> None:
    held = threading.Lock()

    def work(log: Path, told: Report) -> None:
        assert held.acquire(blocking=False)
        threading.Event().wait(0.02)
        held.release()

    steps = [Step(str(i), work, holds=("it",)) for i in range(4)]
    assert set(states(steps, tmp_path, lanes=4).values()) == {"ok"}


def test_two_lanes_run_two_steps_at_once(tmp_path: Path) -> None:
    meet = threading.Barrier(2, timeout=20)

    def work(log: Path, told: Report) -> None:
        meet.wait()

    assert set(states([Step("a", work), Step("b", work)], tmp_path).values()) == {"ok"}


def done(name: str, state: str = "ok", **tallies: Tally) -> Done:
    told = Report()
    for group, tally in tallies.items():
        told.count({group: tally}, "host")
    return Done(Step(name, nothing), state, 1.0, told, "it broke" if state == "FAILED" else "")


def test_a_group_that_ran_nowhere_is_a_problem() -> None:
    skipped = Tally(skips=[Skip("t", "no hardware")])
    runs = [done("a", boot=skipped), done("b", unit=Tally(3))]
    assert report.problems(runs) == ["test group boot ran nowhere"]
    lab = Report()
    lab.count({"boot": Tally(1)}, "lab amd")
    assert report.problems([*runs, Done(Step("c", nothing), "ok", 1.0, lab)]) == []


def test_a_group_that_ran_nowhere_is_none_where_a_part_runs() -> None:
    skipped = Tally(skips=[Skip("t", "no hardware")])
    assert report.problems([done("a", boot=skipped)], whole=False) == []


def test_a_step_that_passes_without_tests_is_no_problem() -> None:
    runs = [done("a")]
    assert report.problems(runs) == []
    assert report.lines(runs, ("host",))[-1] == "1 passed, 0 failed, 0 skipped"


def test_a_step_that_counts_tests_and_counts_none_fails(tmp_path: Path) -> None:
    def skipped(log: Path, told: Report) -> None:
        told.count({"boot": Tally(skips=[Skip("t", "no hardware")])}, "host")

    def passed(log: Path, told: Report) -> None:
        told.count({"boot": Tally(1)}, "host")

    steps = [
        Step("none", nothing, counts=True),
        Step("skipped", skipped, counts=True),
        Step("one", passed, counts=True),
    ]
    found = Schedule(steps, tmp_path, 1).run()
    assert [one.state for one in found] == ["FAILED", "FAILED", "ok"]
    assert report.problems(found, whole=False) == [
        "none: it counts tests, and no test ran",
        "skipped: it counts tests, and no test ran",
    ]


def test_processor_seconds_are_those_of_what_the_step_ran(tmp_path: Path) -> None:
    work = "sum(range(3000000))"

    def busy(log: Path, told: Report) -> None:
        # Through a shell: what a child of the child used counts too.
        assert process.run(["sh", "-c", f"{sys.executable} -c '{work}'; :"], log, timeout=60) == 0

    def waits(log: Path, told: Report) -> None:
        assert process.run(["sleep", "0.2"], log, timeout=60) == 0

    found = {
        one.step.name: one
        for one in Schedule([Step("busy", busy), Step("waits", waits)], tmp_path, 2).run()
    }
    assert found["busy"].processor > 0.02
    assert found["waits"].processor < found["busy"].processor
    assert found["waits"].seconds > 0.15


def test_the_end_names_steps_skips_groups_places_and_counts() -> None:
    runs = [done("a", boot=Tally(2, 0, [Skip("t", "why")])), done("b", "FAILED")]
    text = "\n".join(report.lines(runs, ("host", "lab amd")))
    assert "t [host]: why" in text
    assert "boot   2 passed, 1 skipped  -" in text
    assert "FAILED: b: it broke" in text
    assert text.endswith("3 passed, 1 failed, 1 skipped")


def test_a_failed_step_without_failed_tests_says_at_the_end_what_it_said_last(
    tmp_path: Path,
) -> None:
    def breaks(log: Path, told: Report) -> None:
        log.write_text("".join(f"line {number}\n" for number in range(100)))
        raise StepFailed("no")

    found = Schedule([Step("a", breaks)], tmp_path, 1).run()
    *_, last, empty, problem, _, closing = report.lines(found, ("host",))
    assert (last, empty, problem) == ("    line 99", "", "FAILED: a: no")
    assert closing == "0 passed, 1 failed, 0 skipped"
