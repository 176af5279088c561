"""The end of a run: steps, skipped tests by name, and the table test group x place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .outcome import Failure, Skip, Tally
from .schedule import Done

Which = Callable[[Done], Sequence[Failure]]
"""What of a step is shown."""
_LAST = 15  # lines of a failed step's log that are shown once more


def lines(done: Sequence[Done], places: Sequence[str], *, whole: bool = True) -> list[str]:
    """Everything a person wants to read at the end; `whole`: of a run of every step."""
    tallies = merged(done)
    return [
        "",
        "Steps, seconds they took and processor seconds they used",
        *_steps(done),
        "",
        "Skipped tests",
        *_skips(tallies),
        "",
        "Test groups and where they ran",
        *_table(tallies, places),
        *_named("Tests that failed, and passed when they ran once more", done, _unsteady),
        *_named("Failed tests", done, _failed),
        *_said_last(done),
        *(f"FAILED: {text}" for text in problems(done, whole=whole)),
        "",
        closing(done, whole=whole),
    ]


def _said_last(done: Sequence[Done]) -> list[str]:
    """The ends of the logs of failed steps without failed tests, where they are in sight."""
    rows = []
    for one in done:
        said = one.detail.splitlines()[1:][-_LAST:]
        if one.state == "FAILED" and said and not one.report.failures:
            rows += [f"  {one.step.name} said last:", *(f"    {line}" for line in said), ""]
    return rows


def merged(done: Sequence[Done]) -> dict[tuple[str, str], Tally]:
    """The counts of all steps by (group, place)."""
    tallies: dict[tuple[str, str], Tally] = {}
    for one in done:
        for key, tally in one.report.tallies.items():
            tallies.setdefault(key, Tally()).add(tally)
    return tallies


def problems(done: Sequence[Done], *, whole: bool = True) -> list[str]:
    """Why the run failed; empty when it passed.

    Where all steps run, each group of tests has to run somewhere.
    """
    found = [
        f"{one.step.name}: {one.detail.splitlines()[0] if one.detail else one.state}"
        for one in done
        if one.state in ("FAILED", "not run")
    ]
    return found + ([f"test group {group} ran nowhere" for group in _idle(done)] if whole else [])


def _idle(done: Sequence[Done]) -> list[str]:
    """The groups of which no test ran in any place."""
    tallies = merged(done)
    ran = {group for (group, _), tally in tallies.items() if tally.ran()}
    return sorted({group for group, _ in tallies} - ran)


def closing(done: Sequence[Done], *, whole: bool = True) -> str:
    """The counts in one line; a failed step without failed tests counts as one."""
    tallies = merged(done).values()
    failed = sum(tally.failed for tally in tallies)
    passed = sum(tally.passed for tally in tallies) + sum(one.state == "ok" for one in done)
    skipped = sum(len(tally.skips) for tally in tallies)
    skipped += sum(one.state == "skipped" for one in done)
    failed = failed or len(problems(done, whole=whole))
    unsteady = sum(len(one.report.unsteady) for one in done)
    more = f", {unsteady} of the passed at the second run only" if unsteady else ""
    return f"{passed} passed, {failed} failed, {skipped} skipped{more}"


def _steps(done: Sequence[Done]) -> list[str]:
    width = max(len(one.step.name) for one in done)
    rows = []
    for one in done:
        said = one.report.remark or (one.detail.splitlines()[0] if one.detail else "")
        took = f"{one.seconds:5.0f} s {one.processor:5.0f} s"
        rows.append(f"  {one.step.name:<{width}}  {one.state:<7}  {took}  {said}".rstrip())
    return rows


def _unsteady(one: Done) -> Sequence[Failure]:
    return one.report.unsteady


def _failed(one: Done) -> Sequence[Failure]:
    return one.report.failures


def _named(title: str, done: Sequence[Done], which: Which) -> list[str]:
    """Tests by name with what they said; nothing where there are none."""
    rows = []
    for one in done:
        for failure in which(one):
            rows += [f"  {failure.test} [{one.step.name}]", *(f"    {x}" for x in failure.lines)]
    return ["", title, *rows, ""] if rows else []


def _skips(tallies: dict[tuple[str, str], Tally]) -> list[str]:
    found: dict[Skip, list[str]] = {}
    for (_, place), tally in sorted(tallies.items()):
        for skip in tally.skips:
            found.setdefault(skip, []).append(place)
    rows = [f"  {skip.test} [{', '.join(places)}]: {skip.reason}" for skip, places in found.items()]
    return rows or ["  none"]


def _table(tallies: dict[tuple[str, str], Tally], places: Sequence[str]) -> list[str]:
    head = ["group", *places]
    rows = [
        [group, *(_cell(tallies, group, place) for place in places)]
        for group in sorted({group for group, _ in tallies})
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    text = [[f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)] for row in rows]
    first = [f"{cell:<{width}}" for cell, width in zip(head, widths, strict=True)]
    rule = ["-" * width for width in widths]
    return [f"  {'  '.join(row)}".rstrip() for row in [first, rule, *text]]


def _cell(tallies: dict[tuple[str, str], Tally], group: str, place: str) -> str:
    tally = tallies.get((group, place))
    return tally.cell() if tally else "-"
