"""Steps that look at the sources and run nothing of them."""

from __future__ import annotations

import shutil
from pathlib import Path

from . import layers
from .paths import REPOSITORY
from .process import Words, run
from .schedule import Report, Step, StepFailed, StepSkipped
from .tools import tool

CHECKED = ("python", "tests", "ci", "examples")


def must_pass(command: Words, log: Path, *, timeout: float = 1200, **env: str) -> None:
    """Run a command of a step; its failure is the step's."""
    status = run(command, log, timeout=timeout, env=env)
    if status:
        raise StepFailed(f"{Path(command[0]).name} ended with status {status}")


def _layers(log: Path, report: Report) -> None:
    found = layers.problems(REPOSITORY)
    log.write_text("".join(f"{problem}\n" for problem in found))
    if found:
        raise StepFailed(f"{len(found)} problems")


def _format(log: Path, report: Report) -> None:
    must_pass(["cargo", "fmt", "--all", "--check"], log)
    must_pass([tool("ruff"), "format", "--check", *CHECKED], log)
    must_pass([tool("ruff"), "check", *CHECKED], log)


def _types(log: Path, report: Report) -> None:
    for part in (["python/vmlet", "tests", "examples"], ["ci/kit"], ["ci/labkit"]):
        must_pass([tool("mypy"), "--strict", *part], log)


def _workflows(log: Path, report: Report) -> None:
    folder = REPOSITORY / ".github" / "workflows"
    files = sorted(folder.glob("*.yml"))
    schema = ["--builtin-schema", "vendor.github-workflows"]
    must_pass([tool("check-jsonschema"), *schema, *files], log)
    must_pass([tool("zizmor"), "--offline", "--no-progress", folder], log)
    report.remark = f"{len(files)} files"


def _deny(log: Path, report: Report) -> None:
    if shutil.which("cargo-deny") is None:
        raise StepSkipped("cargo-deny is not installed here; the workflow has it")
    must_pass(["cargo", "deny", "--all-features", "check"], log)


STATIC = (
    Step("layers", _layers),
    Step("format", _format),
    Step("types", _types),
    Step("workflows", _workflows),
    Step("dependencies", _deny),
)
