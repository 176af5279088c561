"""The files that a command left in L1's output folder, as an archive on its way out."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path, PurePosixPath

from ..errors import LabError


def unpack(archive: bytes, out: Path) -> None:
    """Write the archive's folders and regular files below `out`, and nothing else."""
    if not archive:
        raise LabError("L1 sent no files, not even an empty archive")
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for member in tar:
                _unpack_member(tar, member, out)
    except tarfile.TarError as error:
        raise LabError(f"what L1 sent is no archive: {error}") from error


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, out: Path) -> None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise LabError(f"L1 sent a file for {name}, outside of the output folder")
    place = out / name
    if any(part.is_symlink() for part in (place, *place.parents) if out in part.parents):
        raise LabError(f"{place} is reached through a symbolic link")
    content = tar.extractfile(member) if member.isreg() else None
    if member.isdir():
        place.mkdir(parents=True, exist_ok=True)
    elif content is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.read())
        place.chmod(member.mode & 0o777)
