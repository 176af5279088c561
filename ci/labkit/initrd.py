"""L1's initial file system: busybox, the init script and kernel modules."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .cpio import Archive
from .modules import load_order, module_name, normalised, read_stripped
from .paths import LABKIT, cache_dir, locked

_BUSYBOX = Path("/bin/busybox")
_INIT, _START = LABKIT / "init.sh", LABKIT / "start.sh"
_KEPT = 8  # images, before the one made longest ago goes: a machine may be about to read one


def build(modules_dir: Path, modules: tuple[str, ...]) -> Path:
    """The path of the image for these modules, made when an input has changed."""
    key = _key(modules_dir, modules)
    image = cache_dir() / "initrd" / f"{key}.cpio"
    if not image.exists():
        with locked(cache_dir() / "initrd.lock"):
            image.parent.mkdir(exist_ok=True)
            temporary = image.with_suffix(".new")
            temporary.write_bytes(_pack(modules_dir, modules))
            temporary.rename(image)
            _drop_oldest(image.parent)
    return image


def _drop_oldest(folder: Path) -> None:
    images = sorted(folder.glob("*.cpio"), key=lambda path: path.stat().st_mtime)
    for old in images[:-_KEPT]:
        old.unlink()


def _key(modules_dir: Path, modules: tuple[str, ...]) -> str:
    digest = hashlib.sha256(f"{modules_dir} {modules}".encode())
    for path in (_INIT, _START, LABKIT / "initrd.py", LABKIT / "cpio.py"):
        digest.update(path.read_bytes())
    for path in (_BUSYBOX, modules_dir / "modules.dep"):
        stat = path.stat()
        digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _pack(modules_dir: Path, modules: tuple[str, ...]) -> bytes:
    archive = Archive()
    for folder in ("bin", "dev", "host", "modules", "proc", "root", "sys"):
        archive.directory(folder)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", _BUSYBOX.read_bytes(), 0o755)
    archive.file("init", _INIT.read_bytes(), 0o755)
    archive.file("start.sh", _START.read_bytes())
    dependencies = (modules_dir / "modules.dep").read_text()
    builtin = (modules_dir / "modules.builtin").read_text()
    options = {normalised(name): rest for name, _, rest in (one.partition(" ") for one in modules)}
    for number, file in enumerate(load_order(dependencies, tuple(options), builtin)):
        name = f"modules/{number:03}-{Path(file).name.partition('.')[0]}"
        archive.file(f"{name}.ko", read_stripped(modules_dir / file))
        if chosen := options.get(module_name(file)):
            archive.file(f"{name}.options", chosen.encode())
    return archive.finish()
