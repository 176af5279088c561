"""The kernels that can be booted without fetching one."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from vmlet.errors import ConfigError
from vmlet.kernels.cache import as_kernel, entries
from vmlet.kernels.kernel import Kernel, in_series, split_release, version_key

# "6", "6.1", "6.1.0-56", "6.12-cloud", "6.1.0-56-cloud-amd64", "cloud"
_REQUEST = re.compile(
    r"(?P<series>\d[\d.]*(?:[+~][\w.+~]*)?(?:-\d[\w.+~]*)?)?-?(?P<flavour>[a-z]\w*)?"
)


def list_kernels(*, root: str | os.PathLike[str] = "/") -> list[Kernel]:
    """The kernels of the host below ``root`` and of the user's cache, newest first."""
    found = [*_host_kernels(Path(root)), *(as_kernel(*entry) for entry in entries())]
    return sorted(
        found, key=lambda kernel: (version_key(kernel.version), kernel.name), reverse=True
    )


def _host_kernels(root: Path) -> Iterator[Kernel]:
    seen: set[str] = set()
    images = [
        *((path, path.name.removeprefix("vmlinuz-")) for path in root.glob("boot/vmlinuz-*")),
        *((path, path.parent.name) for path in root.glob("lib/modules/*/vmlinuz")),
    ]
    for path, release in sorted(images):
        if release in seen or release.endswith((".old", ".efi.signed")):
            continue
        seen.add(release)
        version, flavour = split_release(release)
        modules = root / "lib" / "modules" / release
        yield Kernel(
            path=path,
            version=version,
            flavour=flavour,
            modules_dir=modules if modules.is_dir() else None,
            origin="host",
        )


def parse_request(name: str) -> tuple[str, str | None] | None:
    """Splits ``6.12-cloud`` into series and flavour; None where it is not of that kind.

    An absent series is empty, an absent flavour None: any.
    """
    version, flavour = split_release(name)
    if version != name and re.match(r"\d", name):
        return version, flavour
    match = _REQUEST.fullmatch(name)
    if match is None or not name:
        return None
    return match["series"] or "", match["flavour"]


def find_kernel(
    name: str | os.PathLike[str], *, root: str | os.PathLike[str] = "/"
) -> Kernel | Path:
    """The image that ``name`` means: a path, or the newest known kernel of a name or series.

    ``6.1`` is the newest 6.1 kernel, ``6.12-cloud`` the newest of that flavour.
    """
    path = Path(name)
    text = os.fspath(name)
    if os.sep in text or path.is_file():
        return path
    known = list_kernels(root=root)
    for kernel in known:
        if text in (kernel.name, kernel.package, (kernel.package or "").partition("=")[0]):
            return kernel
    if request := parse_request(text):
        series, flavour = request
        for kernel in known:
            if flavour in (None, kernel.flavour) and (
                not series or in_series(kernel.version, series)
            ):
                return kernel
    raise ConfigError(
        f"there is no file and no known kernel {text!r}{_near(text, known)}",
        remedy=f"Give a path, or fetch one: vmlet kernel fetch {text or '6.1-cloud'}",
    )


def _near(name: str, known: list[Kernel]) -> str:
    names = list(dict.fromkeys(kernel.name for kernel in known))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
    return f"; known: {', '.join(near)}" if near else ""
