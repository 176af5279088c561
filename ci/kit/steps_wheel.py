"""Steps of the package: the wheel, the interpreters it works on, the source distribution."""

from __future__ import annotations

import os
import tarfile
import tempfile
from pathlib import Path

from . import build, pythons, wheel_check
from .outcome import Skip, Tally
from .paths import REPOSITORY, TARGET, VENV
from .process import Words
from .schedule import Report, Step, StepFailed
from .steps_static import must_pass
from .tools import tool

_ALLOWED = REPOSITORY / "ci" / "stubtest-allowlist"


def _wheel(log: Path, report: Report) -> None:
    wheel = build.ensure()
    report.remark = f"{wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB"


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


def _sdist(log: Path, report: Report) -> None:
    with tempfile.TemporaryDirectory(prefix="vmlet-sdist-", dir=TARGET) as folder:
        must_pass([tool("maturin"), "sdist", "--out", folder], log)
        (archive,) = Path(folder).glob("vmlet-*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        (source,) = Path(folder).glob("vmlet-*/Cargo.toml")
        # The archive's dates are all the same: cargo would take an older build for this one.
        for unpacked in source.parent.rglob("*"):
            unpacked.touch()
        command: Words = [tool("maturin"), "build", "--profile", "dev", "--out", folder]
        command = [*command, "--compatibility", "linux", "--interpreter", tool("python")]
        manifest = source.parent / "crates" / "python" / "Cargo.toml"
        command = [*command, "--manifest-path", manifest]
        path = f"{VENV / 'bin'}:{os.environ['PATH']}"
        must_pass(command, log, PATH=path, CARGO_TARGET_DIR=str(TARGET / "sdist"))
        (wheel,) = Path(folder).glob("vmlet-*.whl")
        report.remark = f"{archive.name} builds {wheel.name}"


def _stubs(log: Path, report: Report) -> None:
    command: Words = [tool("python"), "-m", "mypy.stubtest", "vmlet", "--concise"]
    must_pass([*command, "--allowlist", REPOSITORY / "ci" / "stubtest-allowlist"], log)


WHEEL = (
    Step("wheel", _wheel),
    Step("interpreters", _interpreters, after=("wheel",), counts=True),
    Step("stubs", _stubs, after=("wheel",)),
    Step("sdist", _sdist, after=("wheel",)),
)
