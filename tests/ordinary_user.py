"""A user without rights, and what root hands over to one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def handed_over(*files: Path) -> Iterator[None]:
    """Files that belong to that user meanwhile."""
    owners = [file.stat().st_uid for file in files]
    for file in files:
        os.chown(file, NOBODY, -1)
    try:
        yield
    finally:
        for file, owner in zip(files, owners, strict=True):
            os.chown(file, owner, -1)
