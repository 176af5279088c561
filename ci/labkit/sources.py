"""Reading the host's apt sources and deriving the backports entry from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Field order of a written stanza; other fields of the host's stanza follow.
_LEADING_FIELDS = ("Types", "URIs", "Suites", "Components")


@dataclass(frozen=True)
class Source:
    """One stanza of a deb822 sources file, its fields as the host wrote them."""

    fields: tuple[tuple[str, str], ...]

    def field(self, name: str) -> str:
        """The value of a field, or nothing; names ignore case."""
        for key, value in self.fields:
            if key.lower() == name.lower():
                return value
        return ""

    def with_suites(self, suites: list[str]) -> Source:
        """The same archive with other suites."""
        kept = tuple((k, v) for k, v in self.fields if k.lower() != "suites")
        return Source((*kept, ("Suites", " ".join(suites))))

    def render(self) -> str:
        """The stanza as text."""
        known = {key.lower() for key in _LEADING_FIELDS}
        lines = [f"{name}: {self.field(name)}" for name in _LEADING_FIELDS]
        lines += [f"{k}: {v}" for k, v in self.fields if k.lower() not in known]
        return "\n".join(lines) + "\n"


def parse_deb822(text: str) -> list[Source]:
    """The enabled binary stanzas of a ``*.sources`` file."""
    stanzas: list[Source] = []
    fields: list[tuple[str, str]] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                stanzas.append(Source(tuple(fields)))
            fields = []
        elif line[0].isspace() and fields:
            key, value = fields[-1]
            fields[-1] = (key, f"{value}\n{line}")
        elif ":" in line:
            key, value = line.split(":", 1)
            fields.append((key.strip(), value.strip()))
    return [s for s in stanzas if _is_enabled_binary(s)]


def _is_enabled_binary(source: Source) -> bool:
    enabled = source.field("Enabled").lower() not in ("no", "false", "0")
    return enabled and "deb" in source.field("Types").split()


# One-line options whose deb822 field is not just the capitalised word.
_OPTION_FIELDS = {
    "arch": "Architectures",
    "lang": "Languages",
    "target": "Targets",
    "pdiffs": "PDiffs",
    "by-hash": "By-Hash",
}


def parse_one_line(text: str) -> list[Source]:
    """The ``deb`` lines of a ``*.list`` file."""
    sources: list[Source] = []
    for line in text.splitlines():
        source = _parse_deb_line(line.split("#", 1)[0].strip())
        if source is not None:
            sources.append(source)
    return sources


def _parse_deb_line(line: str) -> Source | None:
    if not line.startswith(("deb ", "deb\t")):
        return None
    rest = line[3:].strip()
    options: list[tuple[str, str]] = []
    if rest.startswith("["):
        inside, _, rest = rest[1:].partition("]")
        for option in inside.split():
            name, _, value = option.partition("=")
            field = _OPTION_FIELDS.get(name, name.title())
            options.append((field, value.replace(",", " ")))
    words = rest.split()
    if len(words) < 2:
        return None
    uri, suite, *components = words
    fields = [("Types", "deb"), ("URIs", uri), ("Suites", suite)]
    fields.append(("Components", " ".join(components)))
    return Source((*fields, *options))


def host_sources(etc_apt: Path = Path("/etc/apt")) -> list[Source]:
    """All enabled binary sources of the host."""
    found: list[Source] = []
    lists = [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*.list"))]
    for path in lists:
        if path.is_file():
            found += parse_one_line(path.read_text(errors="replace"))
    for path in sorted((etc_apt / "sources.list.d").glob("*.sources")):
        found += parse_deb822(path.read_text(errors="replace"))
    return found


def lab_sources(host: list[Source], codename: str) -> list[Source]:
    """The host's entries for its own release, the main archive's with backports added.

    Entries of other archives are left out: the lab takes distribution packages only.
    """
    own = {codename, f"{codename}-updates", f"{codename}-security", f"{codename}-backports"}
    chosen: list[Source] = []
    for source in host:
        suites = [suite for suite in source.field("Suites").split() if suite in own]
        if codename in suites and "main" in source.field("Components").split():
            suites = list(dict.fromkeys([*suites, f"{codename}-backports"]))
        if suites:
            chosen.append(source.with_suites(suites))
    return chosen
