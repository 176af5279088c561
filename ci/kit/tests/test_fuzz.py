"""What libFuzzer prints is read as it is; the manifest names every target."""

from __future__ import annotations

from pathlib import Path

from kit import fuzz
from kit.fuzz import Executions

RAN = """\
#2\tINITED cov: 32 ft: 32 corp: 1/1b exec/s: 0 rss: 79Mb
#620773\tDONE   cov: 128 ft: 409 corp: 62/1502b lim: 512 exec/s: 62077 rss: 83Mb
Done 620773 runs in 10 second(s)
stat::number_of_executed_units: 620773
"""
CRASHED = """\
#7957\tNEW    cov: 244 ft: 1042 corp: 178/2Kb exec/s: 0 rss: 79Mb
==1== ERROR: libFuzzer: deadly signal
artifact_prefix='/x/'; Test unit written to /x/crash-ce8c
stat::number_of_executed_units: 7957
"""


def test_executions_and_edges_are_the_last_ones_printed() -> None:
    assert fuzz.read(RAN, 0) == Executions(620773, 128, crashed=False)


def test_a_crash_names_the_input_that_was_kept() -> None:
    assert fuzz.read(CRASHED, 77) == Executions(
        7957, 244, crashed=True, artifact=Path("/x/crash-ce8c")
    )


def test_a_target_that_ran_nothing_has_failed() -> None:
    assert fuzz.read("", 0).crashed


def test_every_target_has_its_file_and_its_dictionary() -> None:
    names = fuzz.targets()
    files = {path.stem for path in (fuzz.FOLDER / "targets").glob("*.rs")}
    assert set(names) == files
    wanted = {
        str(limits["dictionary"]) for limits in fuzz.limits().values() if "dictionary" in limits
    }
    assert wanted == {path.stem for path in (fuzz.FOLDER / "dictionaries").glob("*.dict")}
