"""A file tree that keeps the host's paths: what the root image is packed from."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

_LINKS_MAX = 40  # symbolic links in one path, as the kernel allows


@dataclass(frozen=True)
class Entry:
    """A file of the host, a given content, a symbolic link, or else a directory."""

    source: Path | None = None
    content: bytes | None = None
    link: str | None = None
    mode: int = 0o755

    def digest(self) -> str:
        """What the entry is, without where it comes from."""
        if self.link is not None:
            return f"link {self.link}"
        if self.content is None and self.source is None:
            return "directory"
        data = self.content if self.source is None else self.source.read_bytes()
        return f"file {self.mode:o} {hashlib.sha256(data or b'').hexdigest()}"


@dataclass
class Tree:
    """Entries by their absolute path."""

    entries: dict[Path, Entry] = field(default_factory=dict)

    def add(self, path: Path, *, source: Path | None = None) -> None:
        """Add the host's `path` with its parents and what links in it lead to.

        `source` is the file that stands at that place instead.
        """
        self._add(path, source, _LINKS_MAX)

    def _add(self, path: Path, source: Path | None, links: int) -> None:
        current = Path("/")
        for number, part in enumerate(path.parts[1:], 2):
            current = current / part
            if current.is_symlink() and links:
                target = str(current.readlink())
                self.entries.setdefault(current, Entry(link=target))
                whole = (current.parent / target).joinpath(*path.parts[number:])
                self._add(Path(os.path.normpath(whole)), source, links - 1)
                return
            if current.is_dir():
                self.entries.setdefault(current, Entry())
            elif current.is_file():
                real = source or current
                self.entries[current] = Entry(source=real, mode=real.stat().st_mode & 0o777)

    def directory(self, path: Path) -> None:
        """Add a directory, on the host or not, with its parents."""
        self.add(path)
        for folder in (*reversed(path.parents), path):
            self.entries.setdefault(folder, Entry())

    def write(self, path: Path, text: str) -> None:
        """Add a file with this content."""
        self.directory(path.parent)
        self.entries[path] = Entry(content=text.encode(), mode=0o644)

    def link(self, path: Path, target: str) -> None:
        """Add a symbolic link unless something is there."""
        self.entries.setdefault(path, Entry(link=target))

    def digest(self) -> str:
        """One hash of all that the tree holds."""
        lines = (f"{path} {entry.digest()}\n" for path, entry in sorted(self.entries.items()))
        return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()

    def size(self) -> int:
        """Bytes of all contents, in whole blocks of 4 KiB, one for each other entry."""
        return sum(-(-_length(entry) // 4096) * 4096 for entry in self.entries.values())

    def write_out(self, folder: Path) -> None:
        """Make the tree below `folder`; times of files are kept, for compiled Python."""
        for path, entry in sorted(self.entries.items()):
            place = folder / path.relative_to("/")
            if entry.link is not None:
                place.symlink_to(entry.link)
            elif entry.source is not None:
                shutil.copy2(entry.source, place)
                place.chmod(entry.mode)
            elif entry.content is not None:
                place.write_bytes(entry.content)
                place.chmod(entry.mode)
            else:
                place.mkdir(exist_ok=True)


def _length(entry: Entry) -> int:
    if entry.source is not None:
        return entry.source.stat().st_size
    return len(entry.content) if entry.content else 1
