"""Which engine runs a VM, and what its kernel's command line is where none is given."""

from __future__ import annotations

from vmlet import _core
from vmlet.errors import ConfigError

#: The kernel's command line where none is given, on every engine: console on the serial port, reset
#: at once when the kernel panics, and no time spent on looking for a keyboard controller, nor, on a
#: single CPU, on taking the lock prefixes out of the kernel's code, one by one.
DEFAULT_CMDLINE = (
    "console=ttyS0 panic=-1 reboot=t i8042.noaux i8042.nokbd tsc=reliable noreplace-smp"
)

_NAMES = ("auto", "kvm", "soft")

#: Emptied by the first who says it.
_untold = ["that VMs run on the software CPU"]


def default_cmdline(engine: str = "auto") -> str:
    """The kernel's command line where none is given, on ``engine``.

    On the software CPU it leaves out what costs an interpreter most: the kernel's self-tests of its
    ciphers, mitigations of flaws that this CPU does not have, a check of the timer.

    >>> default_cmdline("kvm") == DEFAULT_CMDLINE
    True
    >>> default_cmdline("soft").removeprefix(DEFAULT_CMDLINE).split()
    ['cryptomgr.notests=1', 'mitigations=off', 'no_timer_check']
    """
    return f"{DEFAULT_CMDLINE} {_core.linux_cmdline(resolve(engine))}".rstrip()


def resolve(engine: str, clock: str = "realtime") -> str:
    """The engine that ``engine`` stands for: "kvm" or "soft". Only "soft" counts instructions."""
    if engine not in _NAMES:
        names = ", ".join(f'"{name}"' for name in _NAMES)
        raise ConfigError(f"engine cannot be {engine!r}", remedy=f"Give one of {names}.")
    if engine != "auto":
        return engine
    if clock == "icount":
        return "soft"
    chosen, reason, remedy = _core.choose_engine()
    if chosen != "kvm":
        _tell(reason, remedy)
    return chosen


def _tell(reason: str, remedy: str | None) -> None:
    """Says once in this process that VMs run on the software CPU, why, and what would help."""
    try:
        _untold.pop()
    except IndexError:
        return
    import logging

    advice = f" {remedy}" if remedy else ""
    logging.getLogger("vmlet").warning(
        "VMs run on the software CPU, which is slower than KVM: %s.%s "
        'To have it without this message, ask for engine="soft".',
        reason,
        advice,
    )
