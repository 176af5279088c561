"""Ratios come from low percentiles, and a row is undecided while its control is off."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from kit.bench import cli, density, kernels
from kit.bench.result import Result, Row, to_json, to_table
from kit.bench.rounds import Plan, fitting, measure
from kit.bench.statistics import Verdict, is_off, low, percentile, ratio, verdict
from kit.process import CommandError

PLAN = Plan("create", "us", "bare ioctls", 1.2)
KEYS = ["row", "unit", "vmlet", "reference", "reference_name", "ratio", "control", "rounds"]


def test_a_percentile_lies_between_neighbours_in_proportion() -> None:
    assert percentile([10, 20], 0.25) == 12.5
    assert percentile([7], 0.1) == 7
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_rare_slow_samples_do_not_move_the_low_percentile() -> None:
    quiet = [10.0] * 50
    assert low([*quiet, *[1000.0] * 40]) == 10
    assert ratio([20.0] * 9, quiet) == 2


def test_a_control_off_by_more_than_half_of_the_allowance_leaves_a_row_undecided() -> None:
    assert not is_off(1.09, 1.2, 1.2)
    assert is_off(0.88, 1.2, 1.2)
    assert is_off(1.13, 0.75, 0.75)
    assert verdict(1.1, 1.2, 1.2) is Verdict.UNDECIDED
    assert verdict(1.1, 1.0, 1.2) is Verdict.MET
    assert verdict(1.3, 1.0, 1.2) is Verdict.NOT_MET
    assert verdict(1.3, 5.0, None) is Verdict.NO_LIMIT


def test_a_ratio_far_from_its_limit_is_told_by_a_worse_control() -> None:
    assert verdict(0.9, 1.04, 1.0) is Verdict.MET
    assert verdict(0.98, 1.04, 1.0) is Verdict.UNDECIDED
    assert verdict(1.2, 0.95, 1.0) is Verdict.NOT_MET


def costs(*values: float) -> Iterator[Mapping[str, list[float]]]:
    """One batch after the other, the last for ever."""
    for value in values:
        yield {"create": [value]}
    while True:
        yield {"create": [values[-1]]}


def test_a_quiet_row_is_decided_after_the_least_rounds() -> None:
    subject, reference = costs(11), costs(10)
    (row,) = measure(
        [PLAN],
        lambda: next(subject),
        lambda: next(reference),
        least=3,
        cap=9,
        told=lambda _: None,
    )
    assert (row.ratio, row.control, row.rounds) == (1.1, 1.0, 3)
    assert row.verdict is Verdict.MET


def noisy() -> Callable[[], Mapping[str, list[float]]]:
    """A reference whose control is far off."""
    calls = iter(range(1000))

    def reference() -> Mapping[str, list[float]]:
        # In each order of the parties the reference comes before its control.
        return {"create": [10.0 if next(calls) % 2 else 20.0]}

    return reference


def test_a_noisy_row_runs_more_rounds_up_to_the_cap_and_stays_undecided() -> None:
    told: list[str] = []
    (row,) = measure([PLAN], lambda: {"create": [10.0]}, noisy(), least=1, cap=2, told=told.append)
    assert (row.verdict, row.rounds) == (Verdict.UNDECIDED, 2)
    assert told == ["1 rounds, at most 2: undecided: create"]


def test_rounds_go_on_while_what_is_made_of_the_rows_is_undecided() -> None:
    def limited(rows: list[Row]) -> list[Row]:
        return [replace(row, verdict=verdict(row.ratio, row.control, 1.2)) for row in rows]

    plan = replace(PLAN, limit=None)
    cases: list[tuple[Callable[[list[Row]], list[Row]], int]] = [(limited, 3), (list, 1)]
    for judged, rounds in cases:
        (row,) = measure(
            [plan],
            lambda: {"create": [10.0]},
            noisy(),
            least=1,
            cap=3,
            told=lambda _: None,
            judged=judged,
        )
        assert row.rounds == rounds


def test_a_slow_host_gets_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("kit.bench.rounds.time.monotonic", lambda: now[0])

    def takes(seconds: float) -> int:
        def batch(count: int) -> None:
            now[0] += count * seconds

        return fitting(batch, 10, 0.5)

    assert [takes(seconds) for seconds in (0, 0.001, 0.1, 0.3, 4)] == [10, 10, 5, 1, 1]


def test_a_long_run_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("kit.bench.rounds.time.monotonic", lambda: now[0])
    told: list[str] = []

    def batch() -> Mapping[str, list[float]]:
        now[0] += 3
        return {"create": [10.0]}

    measure([PLAN], batch, batch, least=4, cap=9, told=told.append)
    assert told == ["2 rounds of 4"]


def result() -> Result:
    row = Row("create", "us", 11, 10, "bare ioctls", 1.1, 1.0, 20, 1.2, Verdict.MET)
    return Result("create", "kvm", "a processor", [row])


def test_the_object_has_the_keys_that_readers_count_on() -> None:
    told = json.loads(to_json(result()))
    assert list(told) == ["bench", "engine", "host", "rows"]
    assert list(told["rows"][0]) == KEYS


def test_the_table_shows_limit_and_verdict_in_columns() -> None:
    head, line = to_table(result())[1:3]
    assert line[head.index("verdict") :] == "met"
    assert line[head.index("limit") :].startswith("1.20")


def found(**changes: int) -> density.Found:
    numbers = dict.fromkeys(density.Found.__dataclass_fields__, 0)
    return density.Found(**{**numbers, **changes})


def test_descriptors_and_threads_that_are_left_are_named_and_few_mappings_are_not() -> None:
    assert found(mappings=100).left() == []
    left = found(descriptors=2, threads=1, mappings=101).left()
    assert left == ["2 descriptors", "1 threads", "101 mappings"]


def test_a_vm_may_take_64_kib_beside_its_guests_pages() -> None:
    assert density.row(64).verdict is Verdict.MET
    assert density.row(64.1).verdict is Verdict.NOT_MET


def test_the_program_that_walks_page_tables_is_no_part_of_the_mean() -> None:
    comparison = kernels.Comparison("native", "", 2.0, 1, 1, (*kernels.KERNELS, "page-walks"))

    class Fake(kernels.Side):
        def __init__(self, cost: float, walks: float) -> None:
            self.costs = {"page-walks": [walks]}
            self.cost, self.results = cost, {}

        def batch(self, _: object) -> Mapping[str, list[float]]:
            return {kernel: [self.cost] for kernel in kernels.KERNELS} | self.costs

    mean, *rows = comparison.rows(Fake(2, 90), Fake(1, 1), lambda _: None)
    assert (mean.row, round(mean.ratio, 6), mean.verdict) == ("native", 2.0, Verdict.MET)
    assert [row.ratio for row in rows if row.row == "native:page-walks"] == [90]


def test_what_the_lab_cannot_make_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    bench = ModuleType("bench")
    bench.needed = lambda: [tmp_path / "floor"]  # type: ignore[attr-defined]
    with pytest.raises(CommandError, match=r"floor; on the host, `ci/bench create --prepare`"):
        cli.check("create", bench)
    (tmp_path / "floor").touch()
    cli.check("create", bench)
