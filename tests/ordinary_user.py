"""A user without rights, and what root hands over to one."""

from __future__ import annotations

import io
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

NOBODY = 65534


def as_user(work: Callable[[], None], locked: int) -> str:
    """What `work` prints as that user, who may lock so many bytes. In a forked process: to start
    another interpreter takes seconds in the lab."""
    told, says = os.pipe()
    number = os.fork()
    if not number:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (locked, locked))
            with redirect_stdout(io.StringIO()) as out:
                work()
            os.write(says, out.getvalue().encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(says)
    with os.fdopen(told) as reader:
        text = reader.read()
    assert os.waitpid(number, 0)[1] == 0, text
    return text


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


@contextmanager
def readable(file: str) -> Iterator[Path]:
    """A copy that the user can read, wherever the file itself is, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(shutil.copyfile(file, Path(folder, Path(file).name)))
