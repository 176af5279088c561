"""The tests that documents name are there, and so are the files they show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kit.paths import REPOSITORY

DOCUMENTS = sorted((REPOSITORY / "docs").glob("*.md"))
_NAMED = re.compile(r"`([\w/.]+\.(?:rs|py))::(\w+)`")
_LINKED = re.compile(r"\]\(([^)#:]+)\)")


def missing(document: Path) -> list[str]:
    """What ``document`` names and the repository lacks."""
    text = document.read_text()
    found = []
    for file, test in _NAMED.findall(text):
        places = [*(REPOSITORY / "crates").rglob(f"**/{file}"), REPOSITORY / "tests" / file]
        wanted = re.compile(rf"\b(?:fn|def) {test}\(")
        if not any(place.is_file() and wanted.search(place.read_text()) for place in places):
            found.append(f"{file}::{test}")
    links = _LINKED.findall(text)
    return found + [link for link in links if not (document.parent / link).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.name))
def test_what_a_document_names_is_there(document: Path) -> None:
    assert missing(document) == []


def test_a_test_that_is_not_there_is_found(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("`pages.rs::no_such_test` and [a file](none.svg)")
    assert missing(document) == ["pages.rs::no_such_test", "none.svg"]
