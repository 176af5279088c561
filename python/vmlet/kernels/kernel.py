"""What is known of one bootable kernel."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# "6.1.0-56-cloud-amd64", "6.12.117+deb12-amd64", "6.8.0-31-generic", "6.9.1"
_RELEASE = re.compile(
    r"(?P<version>\d+\.\d+(?:\.\d+)*(?:[+~][\w.+~]*)?(?:-\d[\w.+~]*)?)(?:-(?P<rest>[A-Za-z].*))?"
)
_ARCHITECTURES = ("amd64", "x86_64", "686-pae", "686", "i386", "arm64")


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """A kernel image and its modules."""

    path: Path
    """The image, as a boot loader would read it."""
    version: str
    """Its release without the flavour, such as ``6.1.0-56``."""
    flavour: str
    """The distribution's variant, such as ``cloud`` or ``generic``; empty for the plain one."""
    modules_dir: Path | None
    """The directory of its modules (``.../lib/modules/RELEASE``), if there is one."""
    origin: Literal["host", "cache"]
    """Whether it belongs to the host or was fetched into the user's cache."""
    package: str | None = None
    """For a fetched kernel: the package and its version, such as ``linux-image-x=6.1.2-1``."""

    @property
    def name(self) -> str:
        """Version and flavour: what ``vmlet run`` takes."""
        return f"{self.version}-{self.flavour}" if self.flavour else self.version


def split_release(release: str) -> tuple[str, str]:
    """Splits ``6.1.0-56-cloud-amd64`` into version and flavour (``6.1.0-56``, ``cloud``)."""
    match = _RELEASE.fullmatch(release)
    if match is None:
        return release, ""
    return match["version"], without_architecture(match["rest"] or "")


def without_architecture(flavour: str) -> str:
    """Drops the architecture that Debian puts behind a flavour."""
    for name in _ARCHITECTURES:
        if flavour == name:
            return ""
        if flavour.endswith("-" + name):
            return flavour[: -len(name) - 1]
    return flavour


def version_key(version: str) -> tuple[int, ...]:
    """Orders versions by their numbers."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def in_series(version: str, series: str) -> bool:
    """Whether ``6.1.0-56`` belongs to the series ``6``, ``6.1`` or itself; not to ``6.10``."""
    return version == series or (
        version.startswith(series)
        and version[len(series) : len(series) + 1] in (".", "-", "+", "~")
    )
