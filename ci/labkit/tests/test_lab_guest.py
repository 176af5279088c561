"""What L1 is told of a command is what was asked for, whatever characters are in it."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from labkit import guest
from labkit.flavour import AMD, FLAVOURS, Flavour


@pytest.fixture
def command(tmp_path: Path) -> guest.Command:
    """A command that prints its arguments, one a line."""
    return guest.Command(
        arguments=("printf", "%s\\n", "two words", "$HOME 'quoted' \"twice\"", "a;b|c", "ü"),
        cwd=tmp_path,
        out=tmp_path / "out",
        venv=tmp_path / "no-venv",
    )


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)


def test_every_word_arrives_as_it_was(command: guest.Command) -> None:
    done = run(guest.script(command, AMD))
    assert done.stdout.splitlines() == list(command.arguments[2:])


def test_the_commands_status_is_the_scripts(command: guest.Command) -> None:
    script = guest.script(replace(command, arguments=("sh", "-c", "exit 41")), AMD)
    assert run(script).returncode == 41


def test_a_missing_folder_is_an_error_before_the_command(command: guest.Command) -> None:
    script = guest.script(replace(command, cwd=command.cwd / "missing"), AMD)
    done = run(script)
    assert (done.returncode, done.stdout) == (126, "")


@pytest.mark.parametrize("flavour", FLAVOURS.values(), ids=FLAVOURS.keys())
def test_the_environment_says_what_the_flavour_promises(
    command: guest.Command, flavour: Flavour
) -> None:
    values = guest.environment(command, flavour)
    assert values["VMLET_LAB"] == flavour.name
    assert values["VMLET_REQUIRE"].split(",") == list(flavour.provides)
    assert values["VMLET_TIME_FACTOR"] == str(flavour.time_factor)
    assert values["VMLET_OUT"] == str(command.out)


def test_the_callers_variables_win_and_are_quoted(command: guest.Command) -> None:
    asked = replace(
        command,
        arguments=("sh", "-c", 'printf "%s" "$TEXT"'),
        environment=(("TEXT", "it's $here"), ("LANG", "C")),
    )
    assert run(guest.script(asked, AMD)).stdout == "it's $here"
    assert guest.environment(asked, AMD)["LANG"] == "C"


def test_settings_are_assignments_for_a_shell(command: guest.Command) -> None:
    odd = replace(command, out=Path("/tmp/a b'c"))
    done = run(guest.settings(odd, 3) + 'printf "%s %s" "$LAB_PLUGGED" "$LAB_OUT"')
    assert done.stdout == "3 /tmp/a b'c"


def test_folders_below_covered_ones_are_visible_once(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    command = guest.Command((), cwd=tmp_path, out=tmp_path, venv=inner)
    found = guest.visible(command)
    assert (tmp_path in found) == (Path("/tmp") in tmp_path.parents)
    assert inner not in found


def test_a_file_below_a_covered_folder_is_visible(command: guest.Command) -> None:
    asked = (Path("/tmp/of-the-host/script.py"), Path("/usr/bin/script"))
    found = guest.visible(replace(command, cwd=Path("/"), venv=Path("/")), asked)
    assert asked[0] in found
    assert asked[1] not in found
