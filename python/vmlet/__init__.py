"""A micro-VMM inside Python: a virtual machine is an ordinary Python object.

>>> import vmlet
>>> vmlet.parse_size("256M")
268435456

A VM is made with :class:`VM`, started, talked to and closed like any other object::

    with vmlet.VM(kernel="vmlinuz", initramfs="initrd.cpio") as vm:
        vm.start()
        vm.console.expect("login:", timeout=10)
"""

from vmlet._core import __version__
from vmlet.console import Console, Terminal
from vmlet.engines import DEFAULT_CMDLINE, default_cmdline
from vmlet.errors import (
    ClosedError,
    ConfigError,
    DeviceError,
    Error,
    ForkedProcessError,
    GuestError,
    HostError,
    KernelError,
    ReentryError,
    RefusedError,
    StateError,
    TimeoutError,
    UnsupportedError,
)
from vmlet.memory import Memory
from vmlet.sizes import parse_size
from vmlet.vcpu import Vcpu
from vmlet.vm import VM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmlet.devices import (
        Balloon,
        Bar,
        Batch,
        Capability,
        Chain,
        Device,
        Disk,
        Dma,
        Irq,
        LinkEnd,
        MmioDevice,
        Net,
        PciDevice,
        PioDevice,
        Queue,
        Rng,
        Vector,
        Vfio,
        VirtioConsole,
        VirtioDevice,
        Vsock,
        link,
    )
    from vmlet.events import Event, Instruction
    from vmlet.exits import Exits
    from vmlet.host import Finding, capabilities, doctor
    from vmlet.initramfs import build_initramfs
    from vmlet.inspection import PageSizes, SecondStage, SlotPages, Walk, WalkStep
    from vmlet.regions import Access, Region, Unclaimed
    from vmlet.registers import Regs, Segment, Sregs, Table

#: Names that are looked up when they are first used, and where: a VM boots without them, and with
#: what they import they take longer than all else.
_LATER = {
    **dict.fromkeys(
        (
            "Balloon",
            "Bar",
            "Batch",
            "Capability",
            "Chain",
            "Device",
            "Disk",
            "Dma",
            "Irq",
            "LinkEnd",
            "MmioDevice",
            "Net",
            "PciDevice",
            "PioDevice",
            "Queue",
            "Rng",
            "Vector",
            "Vfio",
            "VirtioConsole",
            "VirtioDevice",
            "Vsock",
            "link",
        ),
        "vmlet.devices",
    ),
    **dict.fromkeys(("Event", "Instruction"), "vmlet.events"),
    "Exits": "vmlet.exits",
    **dict.fromkeys(("Finding", "capabilities", "doctor"), "vmlet.host"),
    "build_initramfs": "vmlet.initramfs",
    **dict.fromkeys(
        ("PageSizes", "SecondStage", "SlotPages", "Walk", "WalkStep"), "vmlet.inspection"
    ),
    **dict.fromkeys(("Access", "Region", "Unclaimed"), "vmlet.regions"),
    **dict.fromkeys(("Regs", "Segment", "Sregs", "Table"), "vmlet.registers"),
}


#: Modules that are imported when they are first used.
_MODULES = ("host", "vfio")


def __getattr__(name: str) -> object:
    if name in _MODULES:
        import importlib

        return importlib.import_module(f"vmlet.{name}")
    if name not in _LATER:
        raise AttributeError(f"module 'vmlet' has no attribute {name!r}")
    import importlib

    found: object = getattr(importlib.import_module(_LATER[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "DEFAULT_CMDLINE",
    "VM",
    "Access",
    "Balloon",
    "Bar",
    "Batch",
    "Capability",
    "Chain",
    "ClosedError",
    "ConfigError",
    "Console",
    "Device",
    "DeviceError",
    "Disk",
    "Dma",
    "Error",
    "Event",
    "Exits",
    "Finding",
    "ForkedProcessError",
    "GuestError",
    "HostError",
    "Instruction",
    "Irq",
    "KernelError",
    "LinkEnd",
    "Memory",
    "MmioDevice",
    "Net",
    "PageSizes",
    "PciDevice",
    "PioDevice",
    "Queue",
    "ReentryError",
    "Region",
    "RefusedError",
    "Regs",
    "Rng",
    "SecondStage",
    "Segment",
    "SlotPages",
    "Sregs",
    "StateError",
    "Table",
    "Terminal",
    "TimeoutError",
    "Unclaimed",
    "UnsupportedError",
    "Vcpu",
    "Vector",
    "Vfio",
    "VirtioConsole",
    "VirtioDevice",
    "Vsock",
    "Walk",
    "WalkStep",
    "__version__",
    "build_initramfs",
    "capabilities",
    "default_cmdline",
    "doctor",
    "link",
    "parse_size",
]
