"""Takes a kernel out of a Debian package, within a bound and without root.

The package is a file from outside: its names, kinds and sizes are checked before anything is
written, and all that its decompression gives counts against the bound, written or not.
"""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from vmlet.errors import HostError, KernelError
from vmlet.kernels.cache import Stored

_BLOCK = 1 << 20
_KEPT = ("boot/", "lib/modules/", "usr/lib/modules/")
# Room for one member's headers with their long names, in bytes.
_HEADER_ROOM = 1 << 20
_MEMBER_LIMIT = 100_000


class _Bounded:
    """A stream that ends in an error when more comes out than was allowed."""

    def __init__(self, source: IO[bytes], limit: int, name: str) -> None:
        self._source = source
        self._left = limit
        self._limit = limit
        self._name = name
        self._member = _HEADER_ROOM

    def allow(self, size: int) -> None:
        """What the next member may take: its headers and ``size`` bytes."""
        self._member = size + _HEADER_ROOM

    def read(self, size: int) -> bytes:
        data = self._source.read(size)
        self._left -= len(data)
        self._member -= len(data)
        if self._left < 0:
            raise over_cap(self._name, self._limit)
        if self._member < 0:
            raise KernelError(
                f"{self._name}: a member's headers are longer than {_HEADER_ROOM} bytes"
            )
        return data


def over_cap(name: str, limit: int) -> KernelError:
    """The error of a package that is larger than the caller allows."""
    return KernelError(
        f"{name}: its unpacked size is over the limit of {limit} bytes",
        remedy="If the package is the right one, allow more with max_unpacked= or --max-unpacked.",
    )


def unpack(
    package: Path, target: Path, *, limit: int, progress: Callable[[int], None]
) -> list[Stored]:
    """Unpacks ``boot`` and the modules of a ``.deb`` into ``target``, at most ``limit`` bytes.

    ``progress`` is told the bytes written so far. Modules come to ``lib/modules`` wherever the
    package keeps them. Links are left out: no kernel needs one to boot.
    """
    command = ["dpkg-deb", "--fsys-tarfile", os.fspath(package)]
    environment = {**os.environ, "LC_ALL": "C"}
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env=environment
        ) as process,
    ):
        assert process.stdout is not None
        try:
            source = _Bounded(process.stdout, limit, package.name)
            stored = _extract(source, target, progress)
            failed = process.wait() != 0
        except tarfile.TarError:
            failed = True
        except OSError as error:
            process.kill()
            raise write_error(error, target) from error
        except BaseException:
            process.kill()
            raise
        if failed:
            process.kill()
            errors.seek(0)
            said = errors.read(4096).decode("utf-8", "replace").strip()
            raise KernelError(f"{package.name} is damaged: {said or 'not an archive'}")
    return stored


def write_error(error: OSError, target: Path) -> HostError:
    """Says why the cache cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "Free some space, or set VMLET_CACHE to a directory on a larger disk."
    else:
        remedy = "Set VMLET_CACHE to a directory that you may write."
    return HostError(
        f"cannot write below {target}: {error.strerror}", errno=error.errno, remedy=remedy
    )


def _extract(source: _Bounded, target: Path, progress: Callable[[int], None]) -> list[Stored]:
    stored: dict[str, Stored] = {}
    total = 0
    # The bounded stream has the one method that a streamed archive is read by.
    with tarfile.open(fileobj=source, mode="r|", bufsize=_BLOCK // 4) as archive:  # type: ignore[call-overload]
        for count, member in enumerate(archive):
            # The archive reads ahead by its buffer.
            source.allow(member.size)
            # A streamed archive would keep every member's description.
            archive.members = []
            if count >= _MEMBER_LIMIT:
                raise KernelError(f"the package has more than {_MEMBER_LIMIT} members")
            path = _checked_path(member)
            if path is None or not member.isfile():
                continue
            content = archive.extractfile(member)
            assert content is not None
            one = _write(content, target, path)
            stored[path] = one
            total += one.size
            progress(total)
    return list(stored.values())


def _checked_path(member: tarfile.TarInfo) -> str | None:
    """Where a member goes below the target; None where it is of no use."""
    name = member.name
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise KernelError(f"the package has a member that leads out of it: {name!r}")
    if member.isdev() or member.issparse() or member.size < 0:
        raise KernelError(f"the package has a member that no kernel package has: {name!r}")
    path = "/".join(parts)
    if not path.startswith(_KEPT):
        return None
    return path.removeprefix("usr/")


def _write(content: IO[bytes], target: Path, path: str) -> Stored:
    file = target / path
    digest = hashlib.sha256()
    size = 0
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        while block := content.read(_BLOCK):
            out.write(block)
            digest.update(block)
            size += len(block)
    return Stored(path, size, digest.hexdigest())
