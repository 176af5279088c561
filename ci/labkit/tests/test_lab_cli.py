"""The command line of the lab: what it takes and what it refuses, before anything starts."""

from __future__ import annotations

import json

import pytest

from labkit import cli


def test_what_follows_the_dashes_is_the_command() -> None:
    assert cli._divided(["amd", "--", "ls", "--", "-l"]) == (["amd"], ["ls", "--", "-l"])
    assert cli._divided(["amd", "--doctor"]) == (["amd", "--doctor"], [])


def test_a_run_without_a_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["amd"])
    assert ended.value.code == 2
    assert "no command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flavour", "arguments", "said"),
    [
        ("amd", ["--mem", "4000"], "--mem must be 512 to 2815"),
        ("intel", ["--smp", "0"], "--smp at least 1"),
        ("amd", ["--env", "=x"], "--env takes NAME=VALUE"),
        ("intel", ["--plug", "edu"], "not for flavour intel"),
        ("amd", ["--cwd", "/nowhere"], "is no folder"),
    ],
)
def test_a_wrong_option_is_a_failure_of_the_lab(
    capsys: pytest.CaptureFixture[str], flavour: str, arguments: list[str], said: str
) -> None:
    assert cli.main([flavour, *arguments, "--", "true"]) == 125
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["intel", "--cpu", "i486"], ["amd", "--cpu", "ryzen"]])
def test_an_unknown_processor_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--", "true"])
    assert ended.value.code == 2


def test_a_processor_without_ept_promises_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["intel", "--cpu", "core2_penryn_t9600", "--flavour-info"]) == 0
    provides = json.loads(capsys.readouterr().out)["provides"]
    assert "vmx" in provides
    assert "ept" not in provides
