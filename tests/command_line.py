"""The command line in this process: a new one takes seconds in the lab to import what it needs."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from subprocess import CompletedProcess

from vmlet import cli


def command(*words: str) -> CompletedProcess[str]:
    """Status and output of ``vmlet WORDS``."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as errors:
        status = cli.main(words)
    return CompletedProcess(words, status, out.getvalue(), errors.getvalue())
