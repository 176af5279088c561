"""Steps of the package: the wheel, the interpreters it works on, its stubs."""

from __future__ import annotations

from pathlib import Path

from . import build, pythons, sdist, wheel_check
from .outcome import Skip, Tally
from .paths import REPOSITORY
from .process import Words
from .schedule import Report, Step, StepFailed
from .steps_static import must_pass
from .tools import tool

_ALLOWED = REPOSITORY / "ci" / "stubtest-allowlist"


def _wheel(log: Path, report: Report) -> None:
    wheel = build.ensure()
    (source,) = sdist.FOLDER.glob("vmlet-*.tar.gz")
    report.remark = f"{source.name} builds {wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB"


def _interpreters(log: Path, report: Report) -> None:
    wheel, tally, failed = build.ensure(), Tally(), []
    for version in pythons.VERSIONS:
        if pythons.find(version) is None:
            tally.skips.append(Skip(f"wheel on CPython {version}", "no such interpreter here"))
            continue
        try:
            wheel_check.check(wheel, version)
            tally.passed += 1
        except Exception as error:
            tally.failed += 1
            failed.append(f"{version}: {error}")
    report.count({"wheel": tally}, "host")
    if failed:
        raise StepFailed("; ".join(failed))


def _stubs(log: Path, report: Report) -> None:
    command: Words = [tool("python"), "-m", "mypy.stubtest", "vmlet", "--concise"]
    must_pass([*command, "--allowlist", REPOSITORY / "ci" / "stubtest-allowlist"], log)


WHEEL = (
    Step("wheel", _wheel),
    Step("interpreters", _interpreters, after=("wheel",), counts=True),
    Step("stubs", _stubs, after=("wheel",)),
)
