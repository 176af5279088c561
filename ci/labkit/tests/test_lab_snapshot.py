"""L1's saved state is made whatever the emulator does at first, and stays while it is used."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from labkit import snapshot
from labkit.errors import LabError
from labkit.flavour import AMD
from labkit.machine import Config
from labkit.paths import cache_dir, locked


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A machine whose saved state would lie in a cache of its own."""
    monkeypatch.setenv("VMLET_CACHE", str(tmp_path / "cache"))
    for name in ("kernel", "initrd"):
        (tmp_path / name).write_text(name)
    return Config(AMD, tmp_path / "kernel", tmp_path / "initrd", cpus=2, memory=1024)


def _boots(monkeypatch: pytest.MonkeyPatch, *goes_well: bool) -> list[bool]:
    """What the attempts to boot that are left will be."""
    left = list(goes_well)

    def boot(_: Config, state: Path) -> None:
        state.write_text("part of a state")
        if not left.pop(0):
            raise LabError("L1 did not start")
        state.write_text("a state")

    monkeypatch.setattr(snapshot, "_boot_and_save", boot)
    return left


def test_a_boot_that_stood_still_is_tried_again(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = _boots(monkeypatch, False, False, True)
    with snapshot.saved_state(config) as state:
        assert state.read_text() == "a state"
    assert left == []


def test_boots_that_never_go_well_are_an_error_and_leave_nothing(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = _boots(monkeypatch, False, False, False, True)
    with pytest.raises(LabError, match="L1 did not start"), snapshot.saved_state(config):
        pass
    assert left == [True]
    assert not [file for file in _folder().iterdir() if file.suffix != ".lock"]


def test_a_state_that_goes_before_it_is_locked_is_made_again(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = _boots(monkeypatch, True, True)
    with snapshot.saved_state(config):
        pass

    def drops(path: Path, *, shared: bool = False) -> AbstractContextManager[None]:
        if shared and len(left) == 1:
            path.with_suffix(".state").unlink()
        return locked(path, shared=shared)

    monkeypatch.setattr(snapshot, "locked", drops)
    with snapshot.saved_state(config) as state:
        assert state.read_text() == "a state"
    assert left == []


def _folder() -> Path:
    return cache_dir() / "snapshots"
