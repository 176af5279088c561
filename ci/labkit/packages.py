"""What the lab takes from the distribution: the emulator, tools, kernels, images.

Kernels and stand-alone images are unpacked into the cache and never installed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .apt import Apt, is_installed
from .errors import LabError, progress
from .paths import cache_dir, locked

QEMU = "qemu-system-x86_64"
_QEMU_FLOOR = 10  # first release with all devices of the lab and `file:` migration
_TOOLS = ["busybox-static", "kmod", "binutils", "xz-utils", "util-linux"]
_BOCHS_PACKAGES = ["bochs", "bochs-term", "bochsbios", "vgabios"]
_BOCHS_PACKAGES += ["e2fsprogs", "gcc", "libc6-dev", "lz4"]
_BOCHS_FILES = (
    *("/usr/bin/bochs-bin", "/usr/lib/bochs/plugins/libbx_term_gui.so"),
    *("/usr/share/bochs/BIOS-bochs-latest", "/usr/share/vgabios/vgabios.bin"),
    *("/usr/sbin/mke2fs", "/usr/bin/gcc", "/usr/bin/lz4", "/usr/bin/strip", "/bin/busybox"),
)


def ensure_tools() -> None:
    """Install the emulator and the tools that are missing; quiet when all is there."""
    found = shutil.which("depmod", path="/usr/sbin:/sbin:/usr/bin") and shutil.which("strip")
    if found and Path("/bin/busybox").exists() and qemu_major() >= _QEMU_FLOOR:
        return
    with locked(cache_dir() / "install.lock"):
        missing = [package for package in _TOOLS if not is_installed(package)]
        if missing:
            Apt().install(missing)
        if qemu_major() < _QEMU_FLOOR:
            Apt().install(["qemu-system-x86"], backports=True)
    if qemu_major() < _QEMU_FLOOR:
        raise LabError(f"{QEMU} is older than {_QEMU_FLOOR}.0 and backports has no newer one")


def ensure_bochs() -> None:
    """Install the emulator of VT-x and what prepares its images, where missing."""
    with_qemu_too = [*_TOOLS, *_BOCHS_PACKAGES]
    if all(Path(path).exists() for path in _BOCHS_FILES):
        return
    with locked(cache_dir() / "install.lock"):
        missing = [package for package in with_qemu_too if not is_installed(package)]
        if missing:
            Apt().install(missing)


def qemu_major() -> int:
    """The emulator's major version, 0 when there is none."""
    found = re.search(r"version (\d+)\.", qemu_version())
    return int(found[1]) if found else 0


def qemu_version() -> str:
    """The emulator's own version line, empty when there is none.

    It is kept beside the size and date of the binary, so that only a changed
    binary is asked again: starting it costs a tenth of a second.
    """
    where = shutil.which(QEMU)
    if where is None:
        return ""
    stat = Path(where).stat()
    identity = f"{where} {stat.st_size} {stat.st_mtime_ns}"
    memory = cache_dir() / "qemu-version"
    if memory.exists():
        seen, _, version = memory.read_text().partition("\n")
        if seen == identity and version:
            return version
    done = subprocess.run([where, "--version"], capture_output=True, text=True, check=False)
    version = done.stdout.partition("\n")[0]
    with locked(cache_dir() / "qemu-version.lock"):
        temporary = memory.with_suffix(".new")
        temporary.write_text(f"{identity}\n{version}")
        temporary.rename(memory)
    return version


@dataclass(frozen=True)
class Wanted:
    """A package to unpack: the names it may have, and what it holds for us."""

    pattern: str
    files: tuple[tuple[str, str], ...]  # (name in the index, glob in the package)


_KERNEL_FILES = (("", "boot/vmlinuz-*"), ("-modules", "lib/modules/*"))


def _kernel(name: str, pattern: str) -> Wanted:
    return Wanted(pattern, tuple((name + suffix, glob) for suffix, glob in _KERNEL_FILES))


L1_KERNEL = "linux-6.12"
#: Names of its packages.
KERNEL_6_12 = r"linux-image-6\.12\.[0-9+a-z.]*-amd64(-unsigned)?"
WANTED = {
    "l1": _kernel(L1_KERNEL, KERNEL_6_12),
    "6.1": _kernel("linux-6.1-cloud", r"linux-image-6\.1\.0-[0-9]+-cloud-amd64(-unsigned)?"),
    "6.12": _kernel("linux-6.12-cloud", r"linux-image-6\.12\.[0-9+a-z.]*-cloud-amd64(-unsigned)?"),
    # Its 32-bit flavour has a bzImage header and starts at code32 only: no payload inside.
    "memtest": Wanted(
        r"memtest86\+",
        (("bzimage32", "boot/memtest86+ia32.bin"), ("bzimage32-x64", "boot/memtest86+x64.bin")),
    ),
    # The shim build of the hypervisor is an ELF32 with a PVH entry note of 4 bytes;
    # it wants a kernel as its first module.
    "xen": Wanted(r"xen-utils-4\.[0-9]+", (("pvh32", "usr/lib/xen-*/boot/xen-shim"),)),
}
# A module for `pvh32` that is a file of the index itself.
_PVH32_MODULE = "linux-6.1-cloud"


def index(*, guests: bool = True, refresh: bool = False) -> dict[str, Path]:
    """Name and path of every unpacked file, fetching what is not there.

    Without `guests` only what the lab itself needs is fetched.  `refresh` looks
    for newer packages, else what was unpacked once stays.
    """
    names = list(WANTED) if guests else ["l1"]
    store = cache_dir() / "kernels" / "index.json"
    known = {} if refresh else _load(store)
    if refresh:
        Apt().update(force=True)
    if not _complete(names, known):
        with locked(cache_dir() / "kernels.lock"):
            known = {} if refresh else _load(store)
            for name in names:
                if not _complete([name], known):
                    known |= _fetch(WANTED[name])
            temporary = store.with_suffix(".new")
            temporary.write_text(json.dumps(known, indent=2) + "\n")
            temporary.rename(store)
    paths = {name: store.parent / where for name, where in sorted(known.items())}
    if guests:
        paths["pvh32-module"] = paths[_PVH32_MODULE]
    return paths


def _load(store: Path) -> dict[str, str]:
    """The stored index, without files that have gone."""
    store.parent.mkdir(parents=True, exist_ok=True)
    if not store.exists():
        return {}
    known: dict[str, str] = json.loads(store.read_text())
    return {name: where for name, where in known.items() if (store.parent / where).exists()}


def _complete(names: list[str], known: dict[str, str]) -> bool:
    return all(file in known for name in names for file, _ in WANTED[name].files)


def _fetch(wanted: Wanted) -> dict[str, str]:
    apt = Apt()
    package, version = apt.newest(wanted.pattern)
    folder = f"{package}_{version.replace(':', '-')}"
    base = cache_dir() / "kernels"
    if not (base / folder).exists():
        apt.unpack(package, version, base / folder)
        for modules in (base / folder).glob("lib/modules/*"):
            progress(f"indexing the modules of {modules.name}")
            depmod(base / folder, modules.name)
    found: dict[str, str] = {}
    for name, glob in wanted.files:
        matches = sorted((base / folder).glob(glob))
        if not matches:
            raise LabError(f"package {package} {version} has no {glob}")
        found[name] = str(matches[0].relative_to(base))
    return found


def depmod(root: Path, version: str) -> None:
    """Write what the kernel of that version needs to find its modules."""
    tool = shutil.which("depmod", path="/usr/sbin:/sbin:/usr/bin")
    if tool is None:
        raise LabError("depmod is missing; install the package kmod")
    subprocess.run([tool, "-b", str(root), version], check=True)
