"""Records of the core in Python's `logging`, without its threads ever waiting for the interpreter.

The core keeps records in a bounded queue; one daemon thread hands them to the loggers below
``vmlet``. It exists only where somebody listens: while DEBUG or INFO is switched on for ``vmlet``
when a VM is made, and for VMs with devices. Of vCPUs the core logs nothing above INFO: events and
exceptions tell what matters. Devices warn of what only the host can mend, such as a full disk.
"""

from __future__ import annotations

import atexit
import os
import sys
from _thread import allocate_lock

from vmlet import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: `logging.CRITICAL`: the module is imported where it is needed only, since it takes long.
_CRITICAL = 50
# Not by `threading`, which takes long to import and is needed by who listens only.
_start = allocate_lock()
_telling = allocate_lock()
_begun = False
#: The thread that forks has `_telling`.
_quiet = False
#: Some VM of this process has devices, or had.
_devices = False


def _before_fork() -> None:
    """No record is half told: a child would wait for ever for the stream it is written to."""
    global _quiet
    # A handler that forks itself gets on after a while.
    _quiet = _telling.acquire(timeout=1.0)


def _in_parent() -> None:
    global _quiet
    if _quiet:
        _quiet = False
        _telling.release()


def _in_child() -> None:
    """A child has no thread; its parent's may have held a lock."""
    global _start, _telling, _begun, _quiet
    _start, _telling, _begun, _quiet = allocate_lock(), allocate_lock(), False, False


os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)


def follow(*, devices: bool = False) -> None:
    """Has the core log what `logging` would show of it now; with ``devices`` warnings at least.

    >>> import logging
    >>> logging.getLogger("vmlet").setLevel(logging.DEBUG)  # before a VM is made
    >>> follow()
    """
    global _devices
    _devices = _devices or devices
    shown: list[int] = []
    # Where nobody has imported it, nobody has switched anything on; warnings show all the same.
    if _devices or "logging" in sys.modules:
        import logging

        log = logging.getLogger("vmlet")
        levels = [logging.DEBUG, logging.INFO] + ([logging.WARNING] if _devices else [])
        shown = [level for level in levels if log.isEnabledFor(level)]
    _core.log_level(min(shown, default=_CRITICAL))
    if shown:
        _begin()


def _begin() -> None:
    global _begun
    with _start:
        if _begun:
            return
        _begun = True
        import threading

        threading.Thread(target=_relay, name="vmlet-log", daemon=True).start()


def _relay() -> None:
    while True:
        _core.wait_for_logs()
        _tell()


@atexit.register
def _tell() -> None:
    """Hands what waits to the loggers; at the end the last of it."""
    with _telling:
        _hand_over(*_core.take_logs())


def _hand_over(records: Sequence[tuple[str, int, float, str]], dropped: int) -> None:
    if not records and not dropped:
        return
    import logging

    for name, level, created, text in records:
        logger = logging.getLogger(name)
        if logger.isEnabledFor(level):
            record = logger.makeRecord(name, level, "vmlet", 0, text, (), None)
            record.created, record.msecs = created, created % 1 * 1000
            logger.handle(record)
    if dropped:
        text = "%d records were dropped: logging is slower than what is logged"
        logging.getLogger("vmlet").warning(text, dropped)
