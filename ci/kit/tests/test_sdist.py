"""The unpacked source distribution follows the archive and keeps the dates of what is the same."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

from kit import sdist


def pack(folder: Path, **files: str) -> Path:
    """An archive of these files below a top folder."""
    tree = folder / "tree"
    tree.mkdir(exist_ok=True)
    archive = folder / "vmlet-0.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        for name, content in files.items():
            (tree / name).write_text(content)
            packed.add(tree / name, f"vmlet-0/src/{name}")
    return archive


def held(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_holds_what_the_archive_does(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    sdist.refresh(pack(tmp_path, a="1", b="2"), folder)
    assert (folder / "src" / "a").read_text() == "1"
    sdist.refresh(pack(tmp_path, b="3", c="4"), folder)
    assert held(folder) == {"b": "3", "c": "4"}


def test_a_file_that_is_the_same_keeps_its_date(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    sdist.refresh(pack(tmp_path, a="1", b="2"), folder)
    for path in folder.rglob("?"):
        os.utime(path, (1000, 1000))
    sdist.refresh(pack(tmp_path, a="1", b="3"), folder)
    assert (folder / "src" / "a").stat().st_mtime == 1000
    assert (folder / "src" / "b").stat().st_mtime > 1000


def test_a_file_outside_the_top_folder_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    archive = tmp_path / "vmlet-0.tar.gz"
    (tmp_path / "x").write_text("x")
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(tmp_path / "x", "vmlet-0/../../stray")
    sdist.refresh(archive, folder)
    assert not (tmp_path / "stray").exists()
    assert not (tmp_path.parent / "stray").exists()
