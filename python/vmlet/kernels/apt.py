"""apt, run as an ordinary user with directories of its own.

apt verifies the signature of the archive's index and the digests of what it downloads; nothing of
the host's own package state is read but its configuration, sources and keys, and nothing is
written outside the given directory.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmlet.errors import ConfigError, HostError, KernelError, UnsupportedError

Progress = Callable[[str, float | None], None]
"""Is told what goes on and, where known, how much of it is done (0 to 1)."""

_TOOLS = ("apt-get", "apt-cache", "dpkg-deb")
# The host's hooks act on the host's own state; its index files besides the package lists are large.
_CONFIGURATION = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Default-Release;
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
APT::Get::AllowUnauthenticated "false";
APT::Get::Assume-Yes "true";
"""


@dataclass(frozen=True, slots=True)
class Source:
    """A mirror's suite; the keyrings that may sign it (none: apt's trusted ones)."""

    mirror: str
    suite: str
    components: tuple[str, ...] = ("main",)
    keyrings: tuple[str, ...] = ()

    def line(self) -> str:
        """The line of a ``sources.list``."""
        words = (self.mirror, self.suite, *self.components, *self.keyrings)
        if any(re.search(r"[\s\[\],#]", word) for word in words) or not all(words):
            raise ConfigError(f"not usable in apt's list of sources: {' '.join(words)!r}")
        signed = f"[signed-by={','.join(self.keyrings)}] " if self.keyrings else ""
        return f"deb {signed}{self.mirror} {self.suite} {' '.join(self.components)}\n"


class Apt:
    """apt with its state below ``home``, over the host's own sources or over ``sources``."""

    def __init__(self, home: Path, sources: Sequence[Source] | None = None) -> None:
        missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
        if missing:
            raise UnsupportedError(
                f"this host has no {', '.join(missing)}: kernel packages are fetched by apt",
                remedy="On a host without apt give vmlet the path of a kernel you have.",
            )
        lines = None if sources is None else "".join(source.line() for source in sources)
        key = hashlib.sha256((lines or "the host's own").encode()).hexdigest()[:16]
        self._home = home / key
        self._options = self._prepare(lines)

    def _prepare(self, lines: str | None) -> list[str]:
        home = self._home
        for name in ("lists/partial", "archives/partial", "empty"):
            (home / name).mkdir(parents=True, exist_ok=True)
        (home / "status").touch()
        (home / "apt.conf").write_text(_CONFIGURATION)
        directories = {
            "Dir::State": home,
            "Dir::State::lists": home / "lists",
            "Dir::State::status": home / "status",
            "Dir::Cache": home,
            "Dir::Cache::archives": home / "archives",
        }
        if lines is not None:
            (home / "sources.list").write_text(lines)
            directories["Dir::Etc::sourcelist"] = home / "sources.list"
            directories["Dir::Etc::sourceparts"] = home / "empty"
        options = ["-c", os.fspath(home / "apt.conf")]
        for name, path in directories.items():
            options += ["-o", f"{name}={path}"]
        return options

    def targets(self) -> list[tuple[str, str, str]]:
        """The configured indexes: (mirror, suite, component), as apt itself reads its sources."""
        wanted = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
        said = self._run("apt-get", "indextargets", "--format", wanted, "Identifier: Packages")
        rows = (line.split("|") for line in said.splitlines())
        return list(dict.fromkeys((row[0], row[1], row[2]) for row in rows if len(row) == 3))

    def update(self, progress: Progress) -> None:
        """Fetches the package lists anew and verifies them."""
        said = self._run("apt-get", "indextargets", "--format", "$(CREATED_BY)")
        others = {name for name in said.split() if name != "Packages"}
        options = [f"Acquire::IndexTargets::deb::{name}::DefaultEnabled=false" for name in others]
        options.append("Acquire::IndexTargets::deb-src::Sources::DefaultEnabled=false")
        options.append("APT::Update::Error-Mode=any")
        words = [word for option in options for word in ("-o", option)]
        self._run_with_status(["apt-get", *words, "update"], self._home, "package lists", progress)

    def names(self, prefix: str) -> list[str]:
        """The names of the packages that start with ``prefix``."""
        return sorted(self._run("apt-cache", "pkgnames", prefix).split())

    def show(self, package: str, version: str | None = None) -> dict[str, str] | None:
        """The signed index' record of a package in its best or a given version."""
        wanted = f"{package}={version}" if version else package
        words = ("show", "--no-all-versions", wanted)
        said = self._run("apt-cache", *words, accepted=(0, 100))
        return next(_records(said), None)

    def download(self, record: dict[str, str], into: Path, progress: Progress) -> Path:
        """Downloads a package and compares its SHA-256 with that of the signed index."""
        name, version = record["Package"], record["Version"]
        words = ["apt-get", "download", f"{name}={version}"]
        self._run_with_status(words, into, name, progress)
        file = next(into.glob(f"{name}_*.deb"), None)
        if file is None:
            raise KernelError(f"apt reports success but there is no {name}")
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if digest != record.get("SHA256"):
            raise _mismatch(name)
        return file

    def _run(self, tool: str, *words: str, accepted: tuple[int, ...] = (0,)) -> str:
        command = [tool, *self._options, *words]
        done = subprocess.run(command, capture_output=True, env=_environment(), check=False)
        if done.returncode not in accepted:
            raise _explained(tool, done.stderr.decode("utf-8", "replace"))
        return done.stdout.decode("utf-8", "replace")

    def _run_with_status(
        self, command: list[str], directory: Path, what: str, progress: Progress
    ) -> None:
        reader, writer = os.pipe()
        full = [command[0], *self._options, "-o", f"APT::Status-Fd={writer}", *command[1:]]
        progress(what, None)
        with os.fdopen(reader, "r", errors="replace") as status:
            try:
                process = subprocess.Popen(
                    full,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    cwd=directory,
                    env=_environment(),
                    pass_fds=(writer,),
                )
            finally:
                os.close(writer)
            try:
                for line in status:
                    if (part := _fraction(line)) is not None:
                        progress(what, part)
                _, errors = process.communicate()
            except BaseException:
                process.kill()
                process.communicate()
                raise
        if process.returncode != 0:
            raise _explained(what, errors.decode("utf-8", "replace"))


def host_keyrings(etc: Path = Path("/etc/apt")) -> tuple[str, ...]:
    """The keyring files that the host's sources name."""
    files = [etc / "sources.list", *etc.glob("sources.list.d/*.list")]
    files += etc.glob("sources.list.d/*.sources")
    found: set[str] = set()
    for file in files:
        try:
            text = file.read_text("utf-8", "replace")
        except OSError:
            continue
        for names in re.findall(
            r"^[^#\n]*signed-by\s*[:=]\s*(/[^\s\]]+)", text, re.IGNORECASE | re.MULTILINE
        ):
            found.update(name for name in names.split(",") if Path(name).is_file())
    return tuple(sorted(found))


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}


def _records(text: str) -> Iterator[dict[str, str]]:
    """Splits RFC-822-like records; continued lines belong to no field that is used here."""
    for block in text.split("\n\n"):
        fields = re.findall(r"^([A-Za-z0-9-]+):[ \t]*(.*)$", block, re.MULTILINE)
        if fields:
            yield dict(fields)


def _fraction(line: str) -> float | None:
    """The share done in a line ``dlstatus:1:12.5:Retrieving file 1 of 1``."""
    parts = line.split(":")
    try:
        return min(max(float(parts[2]) / 100, 0.0), 1.0) if parts[0] == "dlstatus" else None
    except (IndexError, ValueError):
        return None


def _mismatch(what: str) -> KernelError:
    return KernelError(
        f"{what}: the digest differs from that in the signed index",
        remedy="The mirror or a proxy gives damaged or foreign files: try again or another mirror.",
    )


# What apt says, the kind of trouble it means, and the remedy.
_NETWORK = (
    "Could not resolve|Could not connect|Connection failed|Connection timed out|Unable to connect|"
    "Temporary failure|Network is unreachable|Cannot initiate the connection|Connection refused"
)
_UNSIGNED = "is not signed|NO_PUBKEY|couldn't be verified|BADSIG|not authenticated|EXPKEYSIG"
_ENETUNREACH = 101
_ENOSPC = 28


def _explained(what: str, said: str) -> Exception:
    """The exception for apt's message."""
    lines = [line[2:].strip() for line in said.splitlines() if line.startswith(("E:", "W:"))]
    text = "; ".join(lines)[:1000] or said.strip()[:1000] or "apt failed without a message"
    if re.search("Hash Sum mismatch|unexpected size", said):
        return _mismatch(what)
    if re.search(_UNSIGNED, said):
        return KernelError(
            f"{what}: the archive's index is not signed by a trusted key: {text}",
            remedy="Name the archive's keyring with keyring= or --keyring.",
        )
    if re.search("No space left|Disk quota|don't have enough free space", said):
        remedy = "Free some space, or set VMLET_CACHE to a directory on a larger disk."
        return HostError(f"{what}: {text}", errno=_ENOSPC, remedy=remedy)
    if re.search(_NETWORK, said):
        remedy = "Check the network and apt's proxy settings, or name a mirror with --mirror."
        return HostError(f"{what}: no connection: {text}", errno=_ENETUNREACH, remedy=remedy)
    return KernelError(f"{what}: {text}", remedy="Check the suite, the mirror and apt's sources.")
