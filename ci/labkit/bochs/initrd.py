"""L1's initial file system for this emulator, and the part of it that a run adds."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..cpio import Archive
from ..modules import load_order, read_stripped
from ..paths import LABKIT, locked
from . import programs

_BUSYBOX = Path("/bin/busybox")
_HERE = Path(__file__).resolve().parent
_INIT, _START = _HERE / "init.sh", LABKIT / "start.sh"
# Symbols and the places for tracing calls are most of a module, and L1 reads them all.
_STRIP = ("--strip-unneeded", "-R", ".BTF", "-R", "__mcount_loc")


def build(modules_dir: Path, modules: tuple[str, ...]) -> Path:
    """The path of the image for these modules, made when an input has changed."""
    relay = programs.compiled("relay.c")
    image = programs.folder() / f"initrd-{_key(modules_dir, modules, relay)}.cpio"
    if not image.exists():
        with locked(programs.folder() / "initrd.lock"):
            temporary = image.with_suffix(".new")
            temporary.write_bytes(_pack(modules_dir, modules, relay))
            for old in image.parent.glob("initrd-*.cpio"):
                old.unlink()
            temporary.rename(image)
    return image


def of_run(command: str, settings: str) -> bytes:
    """A second archive, to follow the first: what L1's init reads of this run."""
    archive = Archive()
    archive.directory("run")
    archive.file("run/command", command.encode())
    archive.file("run/settings", settings.encode())
    return archive.finish()


def _key(modules_dir: Path, modules: tuple[str, ...], relay: Path) -> str:
    digest = hashlib.sha256(f"{modules_dir} {modules} {relay.name} {_STRIP}".encode())
    for path in (_INIT, _START, _HERE / "initrd.py", LABKIT / "cpio.py"):
        digest.update(path.read_bytes())
    for path in (_BUSYBOX, modules_dir / "modules.dep"):
        stat = path.stat()
        digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _pack(modules_dir: Path, modules: tuple[str, ...], relay: Path) -> bytes:
    archive = Archive()
    for folder in ("bin", "dev", "host", "modules", "proc", "root", "sys"):
        archive.directory(folder)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", _BUSYBOX.read_bytes(), 0o755)
    archive.file("bin/relay", relay.read_bytes(), 0o755)
    archive.file("init", _INIT.read_bytes(), 0o755)
    archive.file("start.sh", _START.read_bytes())
    dependencies = (modules_dir / "modules.dep").read_text()
    builtin = (modules_dir / "modules.builtin").read_text()
    for number, file in enumerate(load_order(dependencies, modules, builtin)):
        name = f"{number:03}-{Path(file).name.partition('.')[0]}.ko"
        archive.file(f"modules/{name}", read_stripped(modules_dir / file, _STRIP))
    return archive.finish()
