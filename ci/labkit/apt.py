"""Debian packages for the lab, by a private apt state beside the host's own.

The host's apt configuration is read, never changed: the backports suite is
known only to the lists kept in the lab's cache.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import cmp_to_key
from pathlib import Path

from .errors import LabError, progress
from .paths import cache_dir
from .sources import host_sources, lab_sources

_LISTS_MAX_AGE = 24 * 3600.0  # seconds until the package lists are read again


def codename(os_release: Path = Path("/etc/os-release")) -> str:
    """The code name of the host's release, which must be a Debian one."""
    values: dict[str, str] = {}
    for line in os_release.read_text().splitlines():
        key, _, value = line.partition("=")
        values[key] = value.strip('"')
    if values.get("ID") != "debian" or not values.get("VERSION_CODENAME"):
        name = values.get("PRETTY_NAME", "unknown")
        raise LabError(f"the lab needs a Debian host, this is {name}; use a debian:12 container")
    return values["VERSION_CODENAME"]


class Apt:
    """apt with the host's archive and its backports suite, state in the cache."""

    def __init__(self) -> None:
        """Prepare the private state; nothing is fetched yet."""
        self.root = cache_dir() / "apt"
        self.codename = codename()

    def _options(self) -> list[str]:
        settings = {
            "Dir::Etc::SourceList": "/dev/null",
            "Dir::Etc::SourceParts": str(self.root / "sources"),
            "Dir::State::Lists": str(self.root / "lists"),
            "Dir::Cache": str(self.root / "cache"),
            "APT::Sandbox::User": "root",
            "Acquire::Retries": "3",
            "DPkg::Lock::Timeout": "300",
        }
        return [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]

    def _write_sources(self) -> None:
        chosen = lab_sources(host_sources(), self.codename)
        if not any(f"{self.codename}-backports" in s.field("Suites") for s in chosen):
            raise LabError(
                f"no apt source for {self.codename} main on this host to derive backports from"
            )
        for folder in ("sources", "lists/partial", "cache/archives/partial"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        text = "\n".join(source.render() for source in chosen)
        (self.root / "sources" / "lab.sources").write_text(text)

    def update(self, *, force: bool = False) -> None:
        """Read the package lists, unless that was done within a day."""
        stamp = self.root / "updated"
        fresh = stamp.exists() and time.time() - stamp.stat().st_mtime < _LISTS_MAX_AGE
        if fresh and not force:
            return
        progress("reading package lists")
        self._write_sources()
        self._run(["apt-get", *self._options(), "-q", "update"])
        stamp.touch()

    def newest(self, pattern: str, below: str | None = None) -> tuple[str, str]:
        """Name and version of the newest package whose whole name matches `pattern`, and whose
        version is lower than `below`.

        Between equal versions the shorter name wins, which is the signed kernel.
        """
        found = self._versions(pattern)
        if below is not None:
            found = [one for one in found if compare_versions(one[1], below) < 0]
        if not found:
            older = f" older than {below}" if below else ""
            where = f"{self.codename} and its backports"
            raise LabError(f"no package{older} matches {pattern} in {where}")
        return max(found, key=cmp_to_key(_compare_versions_of))

    def of_version(self, pattern: str, version: str) -> list[str]:
        """Packages of just that version whose whole names match `pattern`, shorter names first."""
        return [name for name, found in self._versions(pattern) if found == version]

    def _versions(self, pattern: str) -> list[tuple[str, str]]:
        """Name and version of all that the archives have of these packages, shorter names first."""
        self.update()
        names = self._run(["apt-cache", *self._options(), "pkgnames", _literal_prefix(pattern)])
        matching = sorted(name for name in names.split() if re.fullmatch(pattern, name))
        if not matching:
            return []
        found = listed(self._run(["apt-cache", *self._options(), "madison", *matching]))
        return sorted(set(found), key=lambda item: (len(item[0]), item))

    def needed_by(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """Name and version of all packages of a system that has just these, as apt chooses them."""
        self.update()
        nothing = self.root / "no-status"
        nothing.touch()
        options = ["-o", f"Dir::State::status={nothing}", "--no-install-recommends"]
        said = self._run(["apt-get", *self._options(), *options, "-s", "install", *names])
        return re.findall(r"^Inst (\S+) \((\S+)", said, re.MULTILINE)

    def unpack(self, name: str, version: str, target: Path) -> None:
        """Fetch a package, whose hash apt checks, and unpack it into `target`."""
        progress(f"fetching {name} {version}")
        self.unpack_all([(name, version)], target)

    def unpack_all(
        self,
        packages: Sequence[tuple[str, str]],
        target: Path,
        finish: Callable[[Path], None] = lambda _: None,
    ) -> None:
        """Fetch packages and unpack them into `target`, which `finish` may still change."""
        work = target.with_name(f".{target.name}.new")
        shutil.rmtree(work, ignore_errors=True)
        (work / "deb").mkdir(parents=True)
        try:
            wanted = [f"{name}={version}" for name, version in packages]
            command = ["apt-get", *self._options(), "-q", "download", *wanted]
            self._run(command, cwd=work / "deb")
            found = sorted((work / "deb").glob("*.deb"))
            if len(found) != len(packages):
                raise LabError(f"{len(packages)} packages asked for, {len(found)} fetched")
            for package in found:
                self._run(["dpkg", "-x", str(package), str(work / "tree")])
            finish(work / "tree")
            shutil.rmtree(target, ignore_errors=True)
            (work / "tree").rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def install(self, packages: list[str], *, backports: bool = False) -> None:
        """Install packages on the host, with sudo where needed."""
        self.update()
        progress(f"installing {' '.join(packages)}")
        command = ["apt-get", *self._options(), "-q", "-y", "--no-install-recommends"]
        if backports:
            command += ["-t", f"{self.codename}-backports"]
        self._run([*as_root(), *command, "install", *packages])

    def _run(self, command: list[str], cwd: Path | None = None) -> str:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
            raise LabError(f"{' '.join(command)} failed with {done.returncode}:\n{tail}")
        return done.stdout


def as_root() -> list[str]:
    """The prefix that makes a command run as root."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") is None:
        raise LabError("packages are missing and there is no sudo; run this once as root")
    return ["sudo", "--preserve-env=DEBIAN_FRONTEND"]


def is_installed(package: str) -> bool:
    """Whether dpkg has the package installed."""
    done = subprocess.run(
        ["dpkg-query", "-W", "-f", "${db:Status-Status}", package],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False,
    )  # fmt: skip
    return done.stdout == "installed"


def _literal_prefix(pattern: str) -> str:
    """The part of a regular expression before its first special character."""
    prefix = re.split(r"[\\.\[\](){}*?|^$]", pattern, maxsplit=1)[0]
    # A character before `+` is literal only without it, as in `memtest86\+`.
    return prefix.rstrip("+")


def listed(madison: str) -> list[tuple[str, str]]:
    """Name and version in each line of ``apt-cache madison``."""
    lines = (line.split("|") for line in madison.splitlines())
    return [(fields[0].strip(), fields[1].strip()) for fields in lines if len(fields) == 3]


def _compare_versions_of(left: tuple[str, str], right: tuple[str, str]) -> int:
    return compare_versions(left[1], right[1])


def compare_versions(left: str, right: str) -> int:
    """Order of two package versions as dpkg sees it: negative, 0 or positive."""
    if left == right:
        return 0
    command = ["dpkg", "--compare-versions", left, "lt", right]
    return -1 if subprocess.run(command, check=False).returncode == 0 else 1
