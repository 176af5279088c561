"""The user's cache of fetched kernels.

Each entry is a directory ``kernels/PACKAGE_VERSION`` with the unpacked files below ``root`` and a
file ``entry.json`` that names every file with its size and SHA-256. An entry appears by one rename,
so that it is whole or not there; what was damaged later is noticed by the digests.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from vmlet.kernels.kernel import Kernel, split_release

_RECORD = "entry.json"
_FORMAT = 1


def cache_directory() -> Path:
    """Where fetched kernels are: ``$VMLET_CACHE``, else ``vmlet`` in the user's cache directory."""
    if own := os.environ.get("VMLET_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or ""
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "vmlet"


@dataclass(frozen=True, slots=True)
class Stored:
    """One unpacked file: its path below ``root``, its size in bytes and its SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Record:
    """What ``entry.json`` says of an entry."""

    package: str
    version: str
    release: str
    image: str
    files: tuple[Stored, ...]

    def to_json(self) -> str:
        """The text of ``entry.json``."""
        return json.dumps({"format": _FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Reads it; ValueError, KeyError or TypeError where it is not one."""
        data = json.loads(text)
        if not isinstance(data, dict) or data.pop("format") != _FORMAT:
            raise ValueError("not an entry of this format")
        files = tuple(Stored(**one) for one in data.pop("files"))
        record = cls(files=files, **data)
        if any(not _is_inside(one.path) for one in (*record.files, Stored(record.image, 0, ""))):
            raise ValueError("a path leads out of the entry")
        return record


def stored(file: Path, root: Path) -> Stored:
    """Describes a file below ``root``."""
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return Stored(file.relative_to(root).as_posix(), file.stat().st_size, digest)


def _is_inside(path: str) -> bool:
    return not Path(path).is_absolute() and ".." not in Path(path).parts


def entry_path(package: str, version: str) -> Path:
    """The directory of an entry, whether it is there or not."""
    safe = re.sub(r"[^A-Za-z0-9.+~-]", "_", f"{package}_{version}")
    return cache_directory() / "kernels" / safe


def entries() -> Iterator[tuple[Path, Record]]:
    """All entries whose record can be read and whose image has the right size."""
    for path in sorted((cache_directory() / "kernels").glob("*/" + _RECORD)):
        try:
            record = Record.from_json(path.read_text("utf-8"))
            sizes = {one.path: one.size for one in record.files}
            if (path.parent / "root" / record.image).stat().st_size != sizes[record.image]:
                continue
        except (OSError, ValueError, KeyError, TypeError):
            continue
        yield path.parent, record


def intact(entry: Path) -> Record | None:
    """The entry's record if every file still has its digest, else None."""
    try:
        record = Record.from_json((entry / _RECORD).read_text("utf-8"))
        whole = all(_matches(entry / "root", one) for one in record.files)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if whole and record.files else None


def _matches(root: Path, stored: Stored) -> bool:
    with (root / stored.path).open("rb") as file:
        if os.fstat(file.fileno()).st_size != stored.size:
            return False
        return hashlib.file_digest(file, "sha256").hexdigest() == stored.sha256


def as_kernel(entry: Path, record: Record) -> Kernel:
    """The kernel that an entry holds."""
    version, flavour = split_release(record.release)
    modules = entry / "root" / "lib" / "modules" / record.release
    return Kernel(
        path=entry / "root" / record.image,
        version=version,
        flavour=flavour,
        modules_dir=modules if modules.is_dir() else None,
        origin="cache",
        package=f"{record.package}={record.version}",
    )


def commit(staging: Path, entry: Path, record: Record) -> None:
    """Makes the tree in ``staging`` the entry, in place of a damaged one."""
    (staging / _RECORD).write_text(record.to_json(), "utf-8")
    if entry.exists():
        shutil.rmtree(entry)
    entry.parent.mkdir(parents=True, exist_ok=True)
    staging.rename(entry)


@contextmanager
def locked(waiting: Callable[[], None]) -> Iterator[Path]:
    """Holds the cache's lock, which the kernel drops with the process; gives the cache's path.

    ``waiting`` is called when another process holds it.
    """
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(cache / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield cache
    finally:
        os.close(descriptor)
