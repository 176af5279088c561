"""L1's kernel with iommufd and files of devices, which Debian's own is built without.

The kernel stays as it is. Its modules of VFIO are built anew, and that of iommufd beside them, from
Debian's own source package, against the headers of the very same version: what the core of the
kernel has to have for them is in it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .apt import Apt, is_installed
from .errors import LabError, progress
from .packages import KERNEL_6_12, depmod
from .paths import cache_dir, locked

_SOURCE = "linux-source-6.12"
_SOURCE_PATTERN = r"linux-source-6\.12"
_TOOLS = ("gcc", "make", "libelf1")
# What the source package has for the modules.
_TAKEN = re.compile(
    r"linux-source-6\.12/(drivers/(vfio/(pci/)?|iommu/iommufd/|iommu/iommu-priv)[^/]*\.[ch]"
    r"|lib/interval_tree\.c)"
)
_SPAN = "#ifdef CONFIG_INTERVAL_TREE_SPAN_ITER"
_OPTIONS = ("IOMMUFD_MODULE", "VFIO_DEVICE_CDEV", "INTERVAL_TREE_SPAN_ITER")


@dataclass(frozen=True)
class _Folder:
    """A folder of the kernel's source, and the objects of each module in it."""

    path: str
    modules: dict[str, str]  # the name of a module, and its objects where these are several

    def kbuild(self) -> str:
        """The file that tells the kernel's build of it."""
        lines = ["ccflags-y += " + " ".join(f"-DCONFIG_{name}=1" for name in _OPTIONS)]
        lines.append("obj-m := " + " ".join(f"{name}.o" for name in self.modules))
        lines += [f"{name}-y := {parts}" for name, parts in self.modules.items() if parts]
        return "\n".join(lines) + "\n"


_FOLDERS = (
    _Folder(
        "drivers/iommu/iommufd",
        {
            "iommufd": "device.o fault.o hw_pagetable.o io_pagetable.o ioas.o main.o pages.o "
            "vfio_compat.o span.o"
        },
    ),
    _Folder(
        "drivers/vfio",
        {
            "vfio": "vfio_main.o device_cdev.o group.o iommufd.o container.o virqfd.o",
            "vfio_iommu_type1": "",
        },
    ),
    _Folder(
        "drivers/vfio/pci",
        {
            "vfio-pci-core": "vfio_pci_core.o vfio_pci_intrs.o vfio_pci_rdwr.o vfio_pci_config.o",
            "vfio-pci": "vfio_pci.o vfio_pci_igd.o",
        },
    ),
)


def kernel(*, refresh: bool = False) -> tuple[Path, Path]:
    """The kernel and the folder of its modules; made where it is not there, or with `refresh`
    where the packages are newer."""
    folder = cache_dir() / "iommufd"
    pointer = folder / f"of-{_recipe()}"
    with locked(folder / "lock"):
        if refresh or not pointer.exists():
            tree = _made(folder)
            pointer.unlink(missing_ok=True)
            pointer.symlink_to(tree.name)
        tree = pointer.resolve()
    (image,) = tree.glob("boot/vmlinuz-*")
    (modules,) = tree.glob("lib/modules/*")
    return image, modules


def _recipe() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def _made(folder: Path) -> Path:
    missing = [package for package in _TOOLS if not is_installed(package)]
    if missing:
        Apt().install(missing)
    _, version = Apt().newest(_SOURCE_PATTERN)
    names = _names(version)
    target = folder / f"{version.replace(':', '-')}-{_recipe()}"
    if not target.exists():
        progress(f"a kernel with iommufd: {names[0]} {version}, once")
        Apt().unpack_all([(name, version) for name in names], target, finish=_finish)
    return target


def _names(version: str) -> tuple[str, ...]:
    """The packages of a kernel of that version: the kernel, its headers and its source."""
    images = Apt().of_version(KERNEL_6_12, version)
    if not images:
        raise LabError(f"{_SOURCE} has version {version}, and no kernel has")
    release = images[0].removeprefix("linux-image-").removesuffix("-unsigned")
    base = release.removesuffix("-amd64")
    headers = (f"linux-headers-{release}", f"linux-headers-{base}-common", f"linux-kbuild-{base}")
    return (images[0], *headers, _SOURCE)


def _finish(tree: Path) -> None:
    """Builds the modules into the kernel's, and leaves nothing else."""
    (modules,) = tree.glob("lib/modules/*")
    work = tree / "build"
    _extract(tree, work)
    _describe(work)
    headers = tree / "usr/src" / f"linux-headers-{modules.name}"
    _relocate(tree, headers)
    _make(headers, work)
    for file in _built(work):
        place = modules / "kernel" / file.relative_to(work)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.with_suffix(".ko.xz").unlink(missing_ok=True)
        shutil.copy(file, place)
    for folder in (work, tree / "usr"):
        shutil.rmtree(folder)
    depmod(tree, modules.name)


def _extract(tree: Path, work: Path) -> None:
    progress("taking the source of the modules")
    (archive,) = tree.glob("usr/src/*.tar.xz")
    with tarfile.open(archive) as source:
        for member in source:
            if member.isfile() and (found := _TAKEN.fullmatch(member.name)):
                content = source.extractfile(member)
                if content is not None:
                    place = work / found[1]
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(content.read())


def _describe(work: Path) -> None:
    """What the kernel's build reads."""
    (work / "Kbuild").write_text(f"obj-m := {' '.join(f'{one.path}/' for one in _FOLDERS)}\n")
    for folder in _FOLDERS:
        (work / folder.path / "Kbuild").write_text(folder.kbuild())
    tree = (work / "lib/interval_tree.c").read_text()
    (work / "drivers/iommu/iommufd/span.c").write_text(span(tree))


def span(source: str) -> str:
    """The iterator over gaps that iommufd needs, which the kernel is built without: the last part
    of its file, for one module and so without exports."""
    _, begin, rest = source.partition(_SPAN)
    if not begin:
        raise LabError(f"the kernel's interval_tree.c has no {_SPAN}")
    lines = [line for line in rest.splitlines() if not line.startswith("EXPORT_SYMBOL")]
    headers = ("interval_tree", "interval_tree_generic", "compiler")
    return "\n".join([*(f"#include <linux/{name}.h>" for name in headers), begin, *lines, ""])


def _relocate(tree: Path, headers: Path) -> None:
    """Paths in the headers' makefiles are those of an installed package."""
    for name in ("Makefile", ".kernelvariables"):
        file = headers / name
        text = file.read_text()
        for folder in ("/usr/src/", "/usr/lib/"):
            text = text.replace(folder, f"{tree}{folder}")
        file.write_text(text)


def _make(headers: Path, work: Path) -> None:
    progress("building the modules (some seconds)")
    command = ["make", "-s", "-C", str(headers), f"M={work}", f"-j{os.cpu_count() or 1}"]
    # Types of modules for BPF, made by a tool that is not needed otherwise.
    command += ["CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise LabError(f"the modules of iommufd were not built:\n{tail}")


def _built(work: Path) -> Iterator[Path]:
    for folder in _FOLDERS:
        for name in folder.modules:
            yield work / folder.path / f"{name}.ko"
