"""Fetches a distribution's kernel into the user's cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vmlet.errors import ConfigError, HostError, KernelError
from vmlet.kernels import cache
from vmlet.kernels.apt import Apt, Progress, Source, host_keyrings
from vmlet.kernels.kernel import Kernel
from vmlet.kernels.resolve import Record, release_of, resolve
from vmlet.kernels.unpack import over_cap, unpack, write_error

DEFAULT_PACKAGE = "cloud"
DEFAULT_LIMIT = 1 << 30
_ENOSPC = 28


def fetch(
    package: str = DEFAULT_PACKAGE,
    *,
    suite: str | None = None,
    mirror: str | None = None,
    components: Sequence[str] = ("main",),
    keyring: str | os.PathLike[str] | None = None,
    max_unpacked: int = DEFAULT_LIMIT,
    refresh: bool = False,
    progress: Progress | None = None,
) -> Kernel:
    """Fetches and unpacks a kernel package without root, and gives the kernel.

    ``package`` is a package's name, a series (``6.1``), a series with flavour (``6.12-cloud``) or
    a flavour; where none is given, the one for virtual machines is preferred. It comes from the
    host's own apt sources; ``suite`` looks in another suite of the same mirrors, ``mirror`` (with
    ``suite``, ``components`` and ``keyring``) somewhere else. The archive's index must be signed by
    a trusted key and the package must have the index' SHA-256. At most ``max_unpacked`` bytes are
    unpacked. A kernel that is in the cache, named by its package and undamaged, is not fetched
    again unless ``refresh`` is set. Several processes may fetch at once.
    """
    if max_unpacked <= 0:
        raise ConfigError(f"max_unpacked is {max_unpacked}, it must be positive")
    elsewhere = {
        "mirror": mirror is not None,
        "keyring": keyring is not None,
        "components": tuple(components) != ("main",),
    }
    if suite is None and any(elsewhere.values()):
        # The host's own sources have theirs: what is asked for here would have no effect.
        given = next(name for name, used in elsewhere.items() if used)
        raise ConfigError(f"{given}= needs suite=", remedy="Name the suite, such as the codename.")
    if not package or package.startswith("-") or not package.isprintable() or " " in package:
        raise ConfigError(f"{package!r} is not a package's name")
    tell = progress or _silent
    with _writable(), cache.locked(lambda: tell("waiting for another fetch", None)) as home:
        if not refresh and (kernel := _cached(package)):
            return kernel
        sources = _sources(home, suite, mirror, tuple(components), keyring)
        apt = Apt(home / "apt", sources)
        apt.update(tell)
        records = resolve(apt, package)
        entry = cache.entry_path(records[0]["Package"], records[0]["Version"])
        record = None if refresh else cache.intact(entry)
        if record is None:
            record = _make_entry(apt, entry, records, max_unpacked, tell)
        return cache.as_kernel(entry, record)


def _silent(_what: str, _part: float | None) -> None:
    pass


@contextmanager
def _writable() -> Iterator[None]:
    try:
        yield
    except HostError:
        raise
    except OSError as error:
        raise write_error(error, cache.cache_directory()) from error


def _cached(package: str) -> Kernel | None:
    for entry, record in cache.entries():
        names = (record.package, f"{record.package}={record.version}")
        if package in names and (whole := cache.intact(entry)) is not None:
            return cache.as_kernel(entry, whole)
    return None


def _sources(
    home: Path,
    suite: str | None,
    mirror: str | None,
    components: tuple[str, ...],
    keyring: str | os.PathLike[str] | None,
) -> list[Source] | None:
    """What apt shall read: None means the host's own sources as they are."""
    if suite is None:
        return None
    if keyring is not None and not Path(keyring).is_file():
        raise ConfigError(f"there is no keyring {os.fspath(keyring)!r}")
    keys = host_keyrings() if keyring is None else (os.fspath(Path(keyring).absolute()),)
    if mirror is not None:
        return [Source(mirror, suite, components, keys)]
    mirrors = _mirrors_of(Apt(home / "apt").targets(), suite)
    return [Source(one, suite, components, keys) for one in mirrors]


def _mirrors_of(targets: list[tuple[str, str, str]], suite: str) -> list[str]:
    """The host's mirrors that have a suite: those it is configured for, else those of its base.

    The base of ``bookworm-backports`` is ``bookworm``.
    """
    same = [mirror for mirror, release, _ in targets if release == suite]
    base = [mirror for mirror, release, _ in targets if suite.startswith(release + "-")]
    plain = [mirror for mirror, release, _ in targets if not set("-/") & set(release)]
    mirrors = list(dict.fromkeys(same or base or plain))
    if not mirrors:
        raise ConfigError(
            f"the host's apt sources name no mirror for the suite {suite!r}",
            remedy="Name one with mirror= or --mirror.",
        )
    return mirrors


def _make_entry(
    apt: Apt, entry: Path, records: list[Record], limit: int, tell: Progress
) -> cache.Record:
    """Downloads and unpacks the packages into a new entry."""
    home = cache.cache_directory()
    first = records[0]
    _check_room(records, home, limit)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=home) as work:
        staging = Path(work) / "entry"
        left = limit
        files: list[cache.Stored] = []
        for one in records:
            deb = apt.download(one, Path(work), tell)
            new = unpack(deb, staging / "root", limit=left, progress=_Unpacked(one, tell))
            deb.unlink()
            files += new
            left -= sum(stored.size for stored in new)
        files += _module_index(staging / "root", release_of(first))
        record = _record(first, files)
        cache.commit(staging, entry, record)
    return record


class _Unpacked:
    """Turns bytes written into a share of the size that the package states."""

    def __init__(self, record: Record, tell: Progress) -> None:
        self._what = f"unpacking {record['Package']}"
        self._size = _number(record, "Installed-Size") * 1024
        self._tell = tell

    def __call__(self, written: int) -> None:
        self._tell(self._what, min(written / self._size, 1.0) if self._size else None)


def _number(record: Record, field: str) -> int:
    text = record.get(field, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0


def _check_room(records: list[Record], home: Path, limit: int) -> None:
    """Refuses early what the index says is too large; unpacking counts again."""
    packed = sum(_number(one, "Size") for one in records)
    if packed > limit:
        raise over_cap(records[0]["Package"], limit)
    unpacked = min(sum(_number(one, "Installed-Size") * 1024 for one in records), limit)
    free = shutil.disk_usage(home).free
    if packed + unpacked > free:
        raise HostError(
            f"{packed + unpacked} bytes are needed below {home} and {free} are free",
            errno=_ENOSPC,
            remedy="Free some space, or set VMLET_CACHE to a directory on a larger disk.",
        )


def _record(package: Record, files: list[cache.Stored]) -> cache.Record:
    images = [one.path for one in files if one.path.startswith("boot/vmlinuz-")]
    if not images:
        raise KernelError(f"{package['Package']} holds no boot/vmlinuz-*")
    image = images[0]
    return cache.Record(
        package=package["Package"],
        version=package["Version"],
        release=image.removeprefix("boot/vmlinuz-"),
        image=image,
        files=tuple(files),
    )


def _module_index(root: Path, release: str) -> list[cache.Stored]:
    """Makes ``modules.dep``, which packages leave to their installation, where depmod exists."""
    modules = root / "lib" / "modules" / release
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    tool = shutil.which("depmod", path=path)
    if tool is None or not release or not modules.is_dir():
        return []
    before = set(modules.iterdir())
    command = [tool, "-b", os.fspath(root), release]
    subprocess.run(command, capture_output=True, check=False)
    made = (file for file in sorted(set(modules.iterdir()) - before) if file.is_file())
    return [cache.stored(file, root) for file in made]
