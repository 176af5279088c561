"""The host's apt sources are read as apt reads them, and backports follows from them."""

from __future__ import annotations

from pathlib import Path

from labkit.sources import host_sources, lab_sources, parse_deb822, parse_one_line

STANZAS = """\
# The distribution.
Types: deb deb-src
URIs: http://archive.test/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By:
 -----BEGIN
 key

Types: deb
URIs: http://archive.test/off
Suites: bookworm
Components: main
Enabled: no

Types: deb-src
URIs: http://archive.test/sources-only
Suites: bookworm
Components: main
"""


def test_only_enabled_binary_stanzas_are_read() -> None:
    (source,) = parse_deb822(STANZAS)
    assert source.field("uris") == "http://archive.test/debian"


def test_a_field_of_several_lines_stays_whole() -> None:
    (source,) = parse_deb822(STANZAS)
    assert source.field("Signed-By") == "\n -----BEGIN\n key"


def test_a_written_stanza_reads_back_as_itself() -> None:
    (source,) = parse_deb822(STANZAS)
    (again,) = parse_deb822(source.render())
    assert dict(again.fields) == dict(source.fields)


def test_options_of_one_line_become_fields() -> None:
    text = "deb [arch=amd64,i386 signed-by=/k.gpg] http://archive.test/d bookworm main contrib\n"
    (source,) = parse_one_line(text)
    assert source.field("Architectures") == "amd64 i386"
    assert source.field("Signed-By") == "/k.gpg"
    assert source.field("Components") == "main contrib"


def test_comments_sources_and_unfinished_lines_are_no_source() -> None:
    lines = ["# deb http://a b main", "deb-src http://a b main", "deb http://a", ""]
    assert parse_one_line("\n".join(lines)) == []


def test_both_kinds_of_files_are_read(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text("deb http://one.test/d bookworm main\n")
    (parts / "two.list").write_text("deb http://two.test/d bookworm main\n")
    (parts / "three.sources").write_text(STANZAS)
    uris = [source.field("URIs") for source in host_sources(tmp_path)]
    assert uris == ["http://one.test/d", "http://two.test/d", "http://archive.test/debian"]


def test_backports_joins_the_archive_of_main() -> None:
    host = parse_one_line("deb http://archive.test/d bookworm main\n")
    (source,) = lab_sources(host, "bookworm")
    assert source.field("Suites").split() == ["bookworm", "bookworm-backports"]


def test_other_archives_and_releases_are_left_out() -> None:
    text = "deb http://other.test/d stable main\ndeb http://archive.test/d trixie main\n"
    assert lab_sources(parse_one_line(text), "bookworm") == []


def test_security_stays_without_backports_of_its_own() -> None:
    host = parse_one_line("deb http://security.test/d bookworm-security main\n")
    (source,) = lab_sources(host, "bookworm")
    assert source.field("Suites") == "bookworm-security"
