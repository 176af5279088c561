"""Debian roots made of packages, unpacked in the cache: programs for guests to run."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from .apt import Apt
from .errors import progress
from .paths import cache_dir, locked

# Where the root of a running system has something, and packages bring nothing.
_PLACES = ("dev", "etc/keys", "jobs", "proc", "tmp")
# What no program of these opens, and would be half of the root: texts, tables of character sets,
# the larger part of perl, which packages depend on.
_LEFT_OUT = (
    *(f"usr/share/{name}" for name in ("doc", "i18n", "info", "lintian", "locale", "man", "perl")),
    *(f"usr/lib/x86_64-linux-gnu/{name}" for name in ("gconv", "perl")),
)


#: What the guests of each root run, by its name in the index. What these depend on comes with them.
ROOTS = {
    "userland": (
        *("apt", "bash", "coreutils", "diffutils", "git", "grep", "gzip"),
        *("libc-bin", "mawk", "openssl", "perl-base", "python3", "sed"),
    ),
    # A root of its own: fio is linked with the clients of every storage system.
    "storage": ("bash", "coreutils", "e2fsprogs", "fio"),
}


def root(name: str, *, refresh: bool = False) -> Path:
    """The directory of the root `name`; made if it is not there, or with `refresh` if packages
    changed."""
    programs = ROOTS[name]
    folder = cache_dir() / "userland"
    pointer = folder / f"of-{_key((*programs, *_LEFT_OUT, *_PLACES))}"
    with locked(folder / "lock"):
        if not refresh and pointer.is_symlink() and pointer.exists():
            return pointer.resolve()
        packages = Apt().needed_by(programs)
        target = folder / _key(chain(_PLACES, _LEFT_OUT, *packages))
        if not target.exists():
            progress(f"a Debian root of {len(packages)} packages")
            Apt().unpack_all(packages, target, finish=_finish)
        temporary = folder / f".{pointer.name}.new"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target.name)
        temporary.rename(pointer)
        return target


def _key(words: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def _finish(tree: Path) -> None:
    for name in _PLACES:
        (tree / name).mkdir(parents=True, exist_ok=True)
    for name in _LEFT_OUT:
        shutil.rmtree(tree / name, ignore_errors=True)
