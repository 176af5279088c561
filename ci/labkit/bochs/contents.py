"""What L1's root holds: the parts of the host that a command of the project needs.

Everything lies at the same absolute path as on the host.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import modules, packages
from ..errors import LabError
from ..guest import Command
from ..paths import REPOSITORY
from . import distributions, programs
from .tree import Tree

# Distributions that the tests use; what they require comes with them.
_DISTRIBUTIONS = ("vmlet", "pytest", "pytest-timeout", "numpy")
# Parts of the standard library, some of them large, that no test uses.
_LIBRARY_PARTS = re.compile(
    r"tests?|idlelib|lib2to3|ensurepip|turtledemo|tkinter|pydoc_data|distutils|config-.*"
    r"|(site|dist)-packages"
)
# Of the repository; Rust's sources and what is built have no use in L1.
_REPOSITORY_PARTS = {"crates", "fuzz", "target"}
_CACHES = re.compile(r"__pycache__|\..*")
# Kernels that no test boots here, and the modules that guests load.
_OTHER_KERNELS = {packages.L1_KERNEL}
_GUEST_MODULES = (
    *("pvpanic-mmio", "virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "virtio_balloon"),
    *("vmw_vsock_virtio_transport", "ext4", "uio_pci_generic"),
)
_PATH_MAX = 4096
_BUSYBOX = Path("/bin/busybox")
_ASSEMBLER = (Path("/usr/bin/as"), Path("/usr/bin/objcopy"))
# What makes disks, where the host has it; busybox's of the same name knows no ext4.
_MKE2FS = Path("/usr/sbin/mke2fs")
_ROOT_FOLDERS = ("/dev", "/proc", "/sys", "/run", "/tmp", "/root", "/etc", "/usr/bin", "/bin")


@dataclass(frozen=True)
class Interpreter:
    """A Python of the host: where its programs are and its version's name."""

    programs: Path
    name: str  # python3.11

    @property
    def library(self) -> Path:
        """The folder of its standard library."""
        return self.programs.parent / "lib" / self.name


def interpreter(venv: Path) -> Interpreter:
    """What a virtual environment is made from; this interpreter where there is none."""
    settings = venv / "pyvenv.cfg"
    if not settings.exists():
        return Interpreter(Path(sys.base_prefix) / "bin", f"python3.{sys.version_info.minor}")
    found = re.search(r"^home\s*=\s*(.+)$", settings.read_text(), re.MULTILINE)
    if found is None:
        raise LabError(f"{settings} names no interpreter")
    return Interpreter(Path(found[1].strip()), (venv / "bin" / "python").resolve().name)


def gather(command: Command, files: tuple[Path, ...]) -> Tree:
    """The tree for a command and the `files` that it needs beside the project's."""
    tree = Tree()
    for folder in _ROOT_FOLDERS:
        tree.directory(Path(folder))
    for path in (command.cwd, command.out):
        tree.directory(path)
    _add_python(tree, interpreter(command.venv))
    if command.venv.exists():
        _add_environment(tree, command.venv)
    _add_repository(tree)
    _add_guests(tree)
    _add_kernels(tree)
    for path in files:
        tree.add(path, source=programs.stripped(path))
    _add_libraries(tree)
    _add_system(tree)
    return tree


def _add_python(tree: Tree, python: Interpreter) -> None:
    for name in ("python3", python.name):
        tree.add(python.programs / name)
    for path in files_below(python.library, _LIBRARY_PARTS):
        if wanted_of_library(path.name):
            tree.add(path)


def wanted_of_library(name: str) -> bool:
    """Whether a file of the standard library is packed: no other levels of optimisation."""
    return not re.search(r"\.opt-[12]\.pyc$|^_test|^_tkinter|^_ctypes_test|^xx", name)


def files_below(folder: Path, without: re.Pattern[str]) -> Iterator[Path]:
    """Every file below a folder, in order, but in no folder with one of these names."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not without.fullmatch(name))
        for name in sorted(names):
            yield Path(place, name)


def _add_environment(tree: Tree, venv: Path) -> None:
    tree.add(venv / "pyvenv.cfg")
    for path in sorted((venv / "bin").glob("python*")):
        tree.add(path)
    for site in sorted(venv.glob("lib/python3*/site-packages")):
        for path in distributions.files(site, _DISTRIBUTIONS):
            tree.add(path)


def _add_repository(tree: Tree) -> None:
    for top in sorted(REPOSITORY.iterdir()):
        if top.name.startswith(".") or top.name in _REPOSITORY_PARTS:
            continue
        for path in files_below(top, _CACHES) if top.is_dir() else [top]:
            tree.add(path)


def _add_guests(tree: Tree) -> None:
    """The guests that the tests assembled on the host, what assembles others and makes disks."""
    for program in (*_ASSEMBLER, *([_MKE2FS] if _MKE2FS.exists() else [])):
        tree.add(program)
    assembled = REPOSITORY / "target" / "guests"
    for path in files_below(assembled, _CACHES) if assembled.is_dir() else []:
        tree.add(path)


def _add_kernels(tree: Tree) -> None:
    lines = []
    for name, path in packages.index().items():
        if name.removesuffix("-modules") in _OTHER_KERNELS:
            continue
        lines.append(f"{name}={path}\n")
        if name.endswith("-modules"):
            _add_modules(tree, path)
        else:
            tree.add(path)
    tree.write(REPOSITORY / "target" / "kernels.txt", "".join(lines))


def _add_modules(tree: Tree, folder: Path) -> None:
    for path in sorted(folder.glob("modules.*")):
        tree.add(path)
    dependencies = (folder / "modules.dep").read_text()
    builtin = (folder / "modules.builtin").read_text()
    for name in modules.load_order(dependencies, _GUEST_MODULES, builtin):
        tree.add(folder / name)


def named(command: Command) -> tuple[Path, ...]:
    """Files of the host among the command's words."""
    paths = (command.cwd / word for word in command.arguments if len(word) < _PATH_MAX)
    return tuple(path for path in paths if path.is_file())


def _add_libraries(tree: Tree) -> None:
    """Add the shared libraries of all programs and modules that are in the tree."""
    binaries = [
        str(path)
        for path, entry in tree.entries.items()
        if entry.source is not None and programs.is_elf(entry.source)
    ]
    for library in libraries(_listing(binaries)):
        tree.add(library)


def _listing(binaries: list[str]) -> str:
    """What ``ldd`` prints, kept for as long as none of the binaries changes: it starts each."""
    stats = ((path, os.stat(path)) for path in binaries)
    identity = "".join(f"{path} {stat.st_size} {stat.st_mtime_ns}\n" for path, stat in stats)
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    memory = programs.folder() / f"libraries-{key}"
    if memory.exists():
        return memory.read_text()
    done = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=False)
    for old in memory.parent.glob("libraries-*"):
        old.unlink(missing_ok=True)
    temporary = memory.with_suffix(".new")
    temporary.write_text(done.stdout)
    temporary.rename(memory)
    return done.stdout


def libraries(listing: str) -> list[Path]:
    """Paths in the output of ``ldd``, each once."""
    found = re.findall(r"^\s+(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)$", listing, re.MULTILINE)
    return [Path(path) for path in dict.fromkeys(found)]


def _add_system(tree: Tree) -> None:
    tree.add(_BUSYBOX)
    done = subprocess.run([str(_BUSYBOX), "--list"], capture_output=True, text=True, check=True)
    for name in done.stdout.split():
        if name != _MKE2FS.name:
            tree.link(_BUSYBOX.resolve().parent / name, "busybox")
    tree.write(Path("/etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")
    tree.write(Path("/etc/group"), "root:x:0:\n")
    if Path("/etc/os-release").exists():
        tree.add(Path("/etc/os-release"))
