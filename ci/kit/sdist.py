"""The source distribution, and its unpacked copy that the wheel is built of."""

from __future__ import annotations

import tarfile
from pathlib import Path

from .paths import TARGET
from .process import must
from .tools import tool

FOLDER = TARGET / "sdist"
_SOURCE = FOLDER / "source"


def unpacked(log: Path) -> Path:
    """Make the archive in `target/sdist`; return the folder of what it holds."""
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("vmlet-*.tar.gz"):
        old.unlink()
    must([tool("maturin"), "sdist", "--out", FOLDER], "maturin sdist", log)
    (archive,) = FOLDER.glob("vmlet-*.tar.gz")
    refresh(archive, _SOURCE)
    return _SOURCE


def refresh(archive: Path, folder: Path) -> None:
    """Make `folder` hold what the archive does, without its top folder.

    A file that is the same keeps its date, and a new one has today's: the dates in an archive are
    all the same, and cargo builds again what is newer than its last build.
    """
    wanted = set()
    with tarfile.open(archive) as packed:
        for member in packed:
            path = folder.joinpath(*Path(member.name).parts[1:])
            source = packed.extractfile(member) if member.isfile() else None
            if source is None or not path.resolve().is_relative_to(folder.resolve()):
                continue
            content = source.read()
            wanted.add(path)
            if not path.is_file() or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    for path in [*folder.rglob("*")]:
        if path.is_file() and path not in wanted:
            path.unlink()
