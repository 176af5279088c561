"""Unpacked kernels are kept where the user says, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

import vmlet
from conftest import kernels

pytestmark = pytest.mark.interpreted

KERNEL = "linux-6.1-cloud"


def made() -> None:
    vmlet.VM(kernel=kernels()[KERNEL], engine="soft").close()


def test_a_kernel_is_kept_in_the_folder_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMLET_KERNEL_CACHE", str(tmp_path / "kernels"))
    made()
    (kept,) = (tmp_path / "kernels").iterdir()
    written = kept.stat().st_mtime_ns
    made()
    assert [kept] == list((tmp_path / "kernels").iterdir())
    assert kept.stat().st_mtime_ns == written


def test_the_folder_is_the_users_cache_where_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VMLET_KERNEL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    made()
    assert len(list((tmp_path / ".cache/vmlet/kernels").iterdir())) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    made()
    assert len(list((tmp_path / "caches/vmlet/kernels").iterdir())) == 1


def test_nothing_is_kept_where_the_name_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMLET_KERNEL_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    made()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VMLET_KERNEL_CACHE", str(tmp_path / "file" / "kernels"))
    made()
