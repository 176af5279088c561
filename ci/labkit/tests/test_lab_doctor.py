"""The lab's check of itself tells what holds from what does not."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from labkit import doctor
from labkit.flavour import AMD, FLAVOURS


def here(out: Path) -> doctor.Check:
    """A question about this machine, which has an answer."""
    return doctor.Check(f"{out} is a folder", f"test -d {out}")


def ask(out: Path, *asked: doctor.Check) -> int:
    command = ["sh", "-c", doctor.script(asked)]
    return subprocess.run(
        command, env={**os.environ, "VMLET_OUT": str(out)}, check=False
    ).returncode


def test_every_question_is_asked_whatever_the_answers_are(tmp_path: Path) -> None:
    ends = doctor.Check("it ends the shell", "exit 3")
    assert ask(tmp_path, here(tmp_path), ends, here(tmp_path)) == 255
    assert doctor.answers((tmp_path / "doctor").read_text()) == {0: 0, 1: 3, 2: 0}


def test_a_lab_where_all_holds_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(words: list[str]) -> int:
        if words == ["true"]:
            return 0
        count = len(doctor.checks(AMD))
        (tmp_path / "doctor").write_text("".join(f"{n} 0\n" for n in range(count)))
        return 255

    assert doctor.examine(AMD, tmp_path, run) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 + len(doctor.checks(AMD))
    assert all(line.startswith("ok ") for line in lines)


@pytest.mark.parametrize("name", FLAVOURS)
def test_a_lab_that_ended_fails_everywhere_and_with_its_status(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.examine(FLAVOURS[name], tmp_path, lambda words: 125) == 125
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 + len(doctor.checks(FLAVOURS[name]))
    assert all(line.startswith("FAIL ") for line in lines)


def test_an_old_file_is_no_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "doctor").write_text("0 0\n")
    assert doctor.examine(AMD, tmp_path, lambda words: 0 if words == ["true"] else 255) == 1
    assert "FAIL KVM has API version 12 (no answer)" in capsys.readouterr().out
