"""What `import vmlet` brings: every process that boots a VM pays for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import vmlet

#: Modules of the standard library that take longer to import than all of vmlet.
LARGE = (
    *("collections", "contextlib", "dataclasses", "functools", "hashlib", "inspect", "json"),
    *("logging", "pathlib", "re", "threading", "typing"),
)


def in_a_new_process(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_import_brings_no_large_module() -> None:
    told = in_a_new_process(f"import vmlet; print([m for m in {LARGE} if m in sys.modules])")
    assert told.strip() == "[]"


@pytest.mark.parametrize("name", vmlet.__all__)
def test_every_name_is_there_and_listed(name: str) -> None:
    assert getattr(vmlet, name) is not None
    assert name in dir(vmlet)


def test_a_name_that_is_none_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        vmlet.Nothing  # noqa: B018
