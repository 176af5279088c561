"""L1's saved state: booted once, to the point where it waits for a command."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import LabError, progress
from .machine import Config, Machine
from .packages import qemu_version
from .paths import LABKIT, cache_dir, locked, locked_if_free

_KEPT = 6  # saved states, 150 MB each, before the one used longest ago goes
_BOOT_LIMIT = 120.0  # seconds, where a quiet machine takes 10
# One boot in ten on a busy host ends by an assertion of QEMU 10.0.2 (`iotlb_to_section`): memory
# gets new numbers where devices are set up, and another processor looks one up by its old number.
_BOOTS = 3
_WAITING = b"LAB-WAITING"


@contextmanager
def saved_state(config: Config) -> Iterator[Path]:
    """Yield the file of the saved state for `config`, made first if there is none.

    The file stays for as long as the context is open.
    """
    state = cache_dir() / "snapshots" / f"{config.flavour.state}-{_key(config)}.state"
    lock = state.with_suffix(".lock")
    while True:
        if not state.exists():
            with locked(lock):
                if not state.exists():
                    _drop_oldest(state.parent)
                    _create(config, state)
        with locked(lock, shared=True):
            if state.exists():  # else another run has dropped it meanwhile
                os.utime(state)
                yield state
                return


def _key(config: Config) -> str:
    digest = hashlib.sha256("\0".join((qemu_version(), *config.shape())).encode())
    for path in (config.kernel, config.initrd, LABKIT / "machine.py"):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _create(config: Config, state: Path) -> None:
    progress("booting L1 once to save its state (some seconds)")
    begin = time.monotonic()
    temporary = state.with_suffix(".new")
    try:
        for left in reversed(range(_BOOTS)):
            try:
                _boot_and_save(config, temporary)
                break
            except LabError as error:
                if not left:
                    raise
                progress(f"{error}\nbooting it again")
        temporary.rename(state)
    finally:
        temporary.unlink(missing_ok=True)
    size = state.stat().st_size / 1e6
    progress(f"saved {size:.0f} MB after {time.monotonic() - begin:.1f} s")


def _boot_and_save(config: Config, state: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="lab-", dir=state.parent) as folder:
        run = Path(folder)
        with Machine(config, run=run, out=run, go=False) as machine:
            _await_boot(machine)
            qmp = machine.monitor()
            qmp.execute("migrate", uri=f"file:{state}")
            if qmp.wait_for("query-migrate", {"completed", "failed"}) == "failed":
                raise LabError("the emulator could not save L1; use --cold")


def _await_boot(machine: Machine) -> None:
    console = machine.channel("console")
    end = time.monotonic() + _BOOT_LIMIT
    seen = b""
    while _WAITING not in seen:
        console.settimeout(max(0.1, end - time.monotonic()))
        try:
            received = console.recv(4096)
        except TimeoutError:
            received = b""
        seen += received
        if not received:
            machine.kill()
            tail = seen[-3000:].decode(errors="replace")
            raise LabError(f"L1 did not start:\n{tail}\n{machine.complaints()}")


def _drop_oldest(folder: Path) -> None:
    states = sorted(folder.glob("*.state"), key=lambda path: path.stat().st_mtime)
    for state in states[: max(0, len(states) - _KEPT + 1)]:
        with locked_if_free(state.with_suffix(".lock")) as free:
            if free:
                state.unlink(missing_ok=True)
                state.with_suffix(".lock").unlink(missing_ok=True)
