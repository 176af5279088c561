"""Where the lab keeps its files, and the locks that guard them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LABKIT = Path(__file__).resolve().parent


def cache_dir() -> Path:
    """The lab's cache: ``$VMLET_CACHE``, or ``target/lab`` of the repository."""
    chosen = os.environ.get("VMLET_CACHE")
    path = Path(chosen).resolve() if chosen else REPOSITORY / "target" / "lab"
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock on the file `path`, waiting for whoever has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Yield whether an exclusive lock on the file `path` was to be had at once."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
