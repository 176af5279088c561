"""From what the user calls a kernel to the packages that hold it."""

from __future__ import annotations

import difflib
import re

from vmlet.errors import ConfigError, KernelError
from vmlet.kernels.apt import Apt
from vmlet.kernels.catalogue import parse_request
from vmlet.kernels.kernel import in_series, split_release, version_key

Record = dict[str, str]

_PREFIX = "linux-image-"
# A package of one kernel has a release of three numbers; with fewer it only depends on the newest.
_REAL = re.compile(r"linux-(?:image|binary)-(?:unsigned-)?(?P<release>\d+\.\d+\.\d+.*)")
_NOT_BOOTED = ("-dbg", "-dbgsym", "-unsigned", "-template")
_PARTS = re.compile(r"linux-(?:modules|binary|image-unsigned)-\d")
_META_DEPTH = 4
# The variants made for virtual machines, the smallest first.
_PREFERRED = ("cloud", "virtual", "kvm", "")


def resolve(apt: Apt, name: str) -> list[Record]:
    """The records of the packages to unpack: the kernel's own first, then its parts.

    ``name`` is a package (one that only depends on the newest kernel is followed), a series
    (``6.1``), a series and flavour (``6.12-cloud``) or a flavour.
    """
    request = None if name.startswith("linux-") else parse_request(name)
    record = apt.show(name) if request is None else None
    if request is not None:
        record = apt.show(_newest(apt, name, *request))
    if record is None:
        raise _unknown(apt, name)
    record = _follow(apt, record)
    parts = [_dependency(apt, word) for word in _depends(record, _PARTS)]
    return [record, *parts]


def release_of(record: Record) -> str:
    """The kernel release that a package's name carries."""
    match = _REAL.fullmatch(record["Package"])
    return match["release"] if match else ""


def _newest(apt: Apt, name: str, series: str, flavour: str | None) -> str:
    found: dict[str, list[tuple[tuple[int, ...], str]]] = {}
    for package in apt.names(_PREFIX):
        match = _REAL.fullmatch(package)
        if match is None or package.endswith(_NOT_BOOTED):
            continue
        version, kind = split_release(match["release"])
        if not series or in_series(version, series):
            found.setdefault(kind, []).append((version_key(version), package))
    order = [flavour] if flavour is not None else [*_PREFERRED, *sorted(found)]
    for kind in order:
        if kind in found:
            return max(found[kind])[1]
    raise _unknown(apt, name)


def _follow(apt: Apt, record: Record) -> Record:
    seen = [record["Package"]]
    for _ in range(_META_DEPTH):
        if _REAL.fullmatch(record["Package"]):
            return record
        images = _depends(record, re.compile(_PREFIX))
        if not images:
            break
        record = _dependency(apt, images[0])
        seen.append(record["Package"])
    raise KernelError(
        f"{' -> '.join(seen)} leads to no kernel image",
        remedy="Name a package such as linux-image-RELEASE; vmlet kernel fetch 6.1 finds one.",
    )


def _depends(record: Record, wanted: re.Pattern[str]) -> list[str]:
    words = ", ".join(record.get(key, "") for key in ("Pre-Depends", "Depends")).split(",")
    first = [word.split("|")[0].strip() for word in words]
    return [word for word in first if wanted.match(word)]


def _dependency(apt: Apt, word: str) -> Record:
    """The record of ``name`` or ``name (= version)``."""
    match = re.fullmatch(r"(\S+)(?:\s*\(\s*=\s*(\S+)\s*\))?(?:\s*\(.*\))?", word)
    record = apt.show(match[1], match[2]) if match else None
    if record is None:
        raise KernelError(
            f"the archive has no {word}, which the kernel's package depends on",
            remedy="Name the suite that has it with --suite, or fetch a given package.",
        )
    return record


def _unknown(apt: Apt, name: str) -> ConfigError:
    names = [one for one in apt.names(_PREFIX) if not one.endswith(_NOT_BOOTED)]
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    near += [one for one in names if name in one and one not in near][: 5 - len(near)]
    hint = (
        f"; near: {', '.join(near)}" if near else f"; the sources have {len(names)} kernel packages"
    )
    return ConfigError(
        f"no kernel package {name!r}{hint}",
        remedy="Check the name, or name the suite that has it with suite= or --suite.",
    )
