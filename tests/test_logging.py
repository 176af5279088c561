"""What the core does reaches `logging`, by a thread that exists only where somebody listens."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest

import vmlet
from conftest import limit
from guests import guest

pytestmark = pytest.mark.engines

SCRIPT = """
import logging, os, sys, threading
import vmlet
{setting}
def life(name):
    with vmlet.VM(kernel={kernel!r}, memory="4M", engine={engine!r}, name=name) as vm:
        vm.start()
        vm.pause()
        vm.resume()
        vm.stop()
life("first")
{more}
print([thread.name for thread in threading.enumerate() if thread.name == "vmlet-log"])
"""
DEBUG = 'logging.basicConfig(level="{level}", format="%(name)s %(levelname)s %(message)s")'


@pytest.fixture
def script(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[str, str]]:
    """Runs a VM's life in a process of its own; its output and what it logged."""
    kernel = tmp_path_factory.mktemp("guest") / "kernel"
    kernel.write_bytes(guest("spin"))

    def run(level: str = "", more: str = "") -> tuple[str, str]:
        setting = DEBUG.format(level=level) if level else ""
        code = SCRIPT.format(setting=setting, kernel=str(kernel), engine=engine, more=more)
        code = textwrap.dedent(code)
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, capture_output=True, text=True, timeout=limit(60))
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    return run


def test_a_life_is_told_to_the_last_record(script: Callable[..., tuple[str, str]]) -> None:
    _, told = script("DEBUG")
    lines = told.splitlines()
    assert lines[0].startswith("vmlet.vm DEBUG first: made on ")
    assert lines[0].endswith(" with 1 vCPUs and 4 MiB")
    assert lines[1:] == [
        "vmlet.vm INFO first: started by the user",
        "vmlet.vm DEBUG first: paused by the user",
        "vmlet.vm DEBUG first: resumed by the user",
        "vmlet.vm INFO first: stopped by the user",
    ]


def test_info_leaves_the_details_out(script: Callable[..., tuple[str, str]]) -> None:
    _, told = script("INFO")
    assert [line.split()[1] for line in told.splitlines()] == ["INFO", "INFO"]


def test_where_nobody_listens_there_is_no_thread(script: Callable[..., tuple[str, str]]) -> None:
    assert script() == ("[]\n", "")
    assert script("INFO")[0] == "['vmlet-log']\n"


def test_a_child_tells_of_its_own_machines_only(script: Callable[..., tuple[str, str]]) -> None:
    more = """
if (pid := os.fork()) == 0:
    life("child")
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""
    _, told = script("INFO", more)
    names = sorted(line.split()[2] for line in told.splitlines())
    assert names == ["child:", "child:", "first:", "first:"]


def test_a_record_has_the_time_of_what_happened(engine: str) -> None:
    seen: list[logging.LogRecord] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record)

    logger, keeper = logging.getLogger("vmlet.vm"), Keeper()
    before = logging.getLogger("vmlet").level
    logging.getLogger("vmlet").setLevel(logging.INFO)
    logger.addHandler(keeper)
    try:
        with vmlet.VM(kernel=guest("spin"), memory="4M", engine=engine, name="timed") as vm:  # type: ignore[arg-type]
            vm.start()
            vm.stop()
        vmlet.logs._tell()
    finally:
        logger.removeHandler(keeper)
        logging.getLogger("vmlet").setLevel(before)
        vmlet.logs.follow()
    times = [record.created for record in seen if "timed" in record.getMessage()]
    assert len(times) == 2
    assert times == sorted(times)
