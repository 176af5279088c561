"""Which packages the lab takes: names by pattern, versions by dpkg's order."""

from __future__ import annotations

import re

import pytest

from labkit import packages
from labkit.apt import Apt, _literal_prefix, compare_versions, listed
from labkit.errors import LabError


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ("l1", "linux-image-6.12.117+deb12-amd64"),
        ("6.1", "linux-image-6.1.0-56-cloud-amd64"),
        ("6.12", "linux-image-6.12.117+deb12-cloud-amd64-unsigned"),
        ("memtest", "memtest86+"),
        ("xen", "xen-utils-4.17"),
    ],
)
def test_a_pattern_takes_the_package(wanted: str, name: str) -> None:
    assert re.fullmatch(packages.WANTED[wanted].pattern, name)


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ("l1", "linux-image-6.12.117+deb12-cloud-amd64"),
        ("l1", "linux-image-6.12.117+deb12-rt-amd64"),
        ("6.1", "linux-image-6.1.0-56-amd64"),
        ("6.1", "linux-image-6.1.0-56-cloud-amd64-dbg"),
        ("xen", "xen-utils-common"),
    ],
)
def test_a_pattern_leaves_its_neighbours(wanted: str, name: str) -> None:
    assert not re.fullmatch(packages.WANTED[wanted].pattern, name)


@pytest.mark.parametrize("wanted", packages.WANTED.values(), ids=packages.WANTED.keys())
def test_every_pattern_begins_with_a_name_to_ask_apt_for(wanted: packages.Wanted) -> None:
    prefix = _literal_prefix(wanted.pattern)
    assert len(prefix) >= 8
    assert re.fullmatch(r"[a-z0-9.-]+", prefix)


def test_the_index_is_complete_only_with_every_file() -> None:
    files = {"linux-6.1-cloud": "a", "linux-6.1-cloud-modules": "b"}
    assert packages._complete(["6.1"], files)
    assert not packages._complete(["6.1"], {"linux-6.1-cloud": "a"})
    assert not packages._complete(["6.1", "6.12"], files)


@pytest.mark.parametrize(
    ("older", "newer"), [("6.1.9-1", "6.1.10-1"), ("1.0~bpo1", "1.0"), ("1.0", "1:0.1")]
)
def test_versions_are_ordered_as_dpkg_does(older: str, newer: str) -> None:
    assert compare_versions(older, newer) < 0
    assert compare_versions(newer, older) > 0
    assert compare_versions(older, older) == 0


def test_versions_of_several_archives_are_listed() -> None:
    text = (
        "linux-a | 6.1-1 | http://archive.test/debian bookworm/main amd64 Packages\n"
        "linux-a |  6.1-2 | http://archive.test/security bookworm/main amd64 Packages\n"
        "N: Unable to locate package linux-b\n"
    )
    assert listed(text) == [("linux-a", "6.1-1"), ("linux-a", "6.1-2")]


@pytest.fixture
def archives(monkeypatch: pytest.MonkeyPatch) -> Apt:
    """Packages that two archives have, one under two names."""
    versions = {"linux-b-unsigned": ("6.12-1", "6.12-2"), "linux-b": ("6.12-1", "7.0-1")}
    lines = [f"{name} | {one} | x" for name, found in versions.items() for one in found]

    def run(_: Apt, command: list[str], cwd: object = None) -> str:
        return "\n".join(lines if "madison" in command else [*versions, "linux-c"])

    monkeypatch.setattr(Apt, "__init__", lambda self: setattr(self, "codename", "bookworm"))
    monkeypatch.setattr(Apt, "update", lambda _: None)
    monkeypatch.setattr(Apt, "_options", lambda _: [])
    monkeypatch.setattr(Apt, "_run", run)
    return Apt()


def test_the_newest_is_taken_and_the_shorter_name_of_equal_ones(archives: Apt) -> None:
    assert archives.newest("linux-b(-unsigned)?") == ("linux-b", "7.0-1")
    assert archives.newest("linux-b(-unsigned)?", below="7") == ("linux-b-unsigned", "6.12-2")
    assert archives.newest("linux-b(-unsigned)?", below="6.12-2") == ("linux-b", "6.12-1")
    with pytest.raises(LabError, match="no package older than 6 matches"):
        archives.newest("linux-b(-unsigned)?", below="6")


def test_packages_of_one_version_are_found_shorter_names_first(archives: Apt) -> None:
    assert archives.of_version("linux-b(-unsigned)?", "6.12-1") == ["linux-b", "linux-b-unsigned"]
    assert archives.of_version("linux-b(-unsigned)?", "8") == []
