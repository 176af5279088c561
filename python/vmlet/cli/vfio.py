"""``vmlet vfio``: PCI functions that can be handed to user space and to guests."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from vmlet import vfio
from vmlet.inventory import PciDevice, pci_device, pci_devices

if TYPE_CHECKING:
    from vmlet.cli.commands import Commands

_LIST = """\
Lists the PCI functions of this host: driver, IOMMU group, how they can be reset, and what keeps
each from being handed on, with a remedy. "ready": nothing does."""
_BIND = """\
Gives functions to the kernel's driver vfio-pci, as root. What each had before is noted in
/run/vmlet, and "vmlet vfio release" gives it back. The host can use them no more meanwhile: those
with an interface that is up, or with a mounted disk, are refused."""
_RELEASE = """\
Gives functions back to the drivers they had before "vmlet vfio bind", as root. Nobody may have
them open."""
_MEND = """\
Puts back what killed processes have left, as root: bindings that were cut short, and virtual
functions that a program wanted for itself. Prints what it mended."""
#: PCI bridges, which are no devices to be handed on.
_BRIDGE = 0x06


def add_parser(commands: Commands) -> None:
    """Adds the command and its subcommands."""
    parser = commands.add_parser("vfio", help="PCI functions to hand on", description=_LIST)
    inner = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listing = inner.add_parser("list", help="the functions of this host", description=_LIST)
    listing.add_argument("--all", action="store_true", help="bridges too")
    listing.add_argument("--json", action="store_true", help="print a JSON array")
    listing.set_defaults(execute=execute_list)
    for name, short, about, act in (
        ("bind", "give functions to vfio-pci", _BIND, vfio.bind),
        ("release", "give them back", _RELEASE, vfio.release),
    ):
        changing = inner.add_parser(name, help=short, description=about)
        changing.add_argument("addresses", nargs="+", metavar="ADDRESS", help="0000:01:00.0")
        changing.add_argument("--json", action="store_true", help="print a JSON array")
        changing.set_defaults(execute=execute_change, act=act)
    mending = inner.add_parser("mend", help="clean up after killed processes", description=_MEND)
    mending.add_argument("--json", action="store_true", help="print a JSON array")
    mending.set_defaults(execute=execute_mend)


def execute_list(args: argparse.Namespace) -> int:
    """Prints the functions."""
    found = [one for one in pci_devices() if args.all or one.class_code >> 16 != _BRIDGE]
    if args.json:
        print(json.dumps([asdict(one) for one in found], indent=2))
    else:
        print("\n".join(render(found)))
    return 0


def execute_change(args: argparse.Namespace) -> int:
    """Binds or releases functions, and prints what they have now."""
    for address in args.addresses:
        args.act(address)
    found = [pci_device(address) for address in args.addresses]
    if args.json:
        print(json.dumps([asdict(one) for one in found], indent=2))
    else:
        print("\n".join(f"{one.address}  {one.driver or '-'}" for one in found))
    return 0


def execute_mend(args: argparse.Namespace) -> int:
    """Mends, and prints what was."""
    mended = vfio.mend()
    if args.json:
        print(json.dumps(mended))
    elif mended:
        print("\n".join(mended))
    return 0


def render(found: list[PciDevice]) -> list[str]:
    """A table, with what is in the way of a function below it."""
    head = ("address", "vendor:id", "driver", "group", "iommu", "reset", "capabilities", "state")
    rows = [head, *(_row(one) for one in found)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    lines = []
    for row, one in zip(rows, [None, *found], strict=True):
        padded = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(padded).rstrip())
        for obstacle in one.obstacles if one else ():
            lines += [f"    cause: {obstacle.cause}", f"    remedy: {obstacle.remedy}"]
    return lines


def _row(one: PciDevice) -> tuple[str, ...]:
    return (
        one.address,
        f"{one.vendor:04x}:{one.device:04x}",
        one.driver or "-",
        str(one.group.number) if one.group else "-",
        one.iommu_kind or "-",
        ",".join(one.reset_methods) or "-",
        _capabilities(one),
        "not ready" if one.obstacles else "ready",
    )


def _capabilities(one: PciDevice) -> str:
    """``ats+`` is on, ``ats-`` off; what the function has not got is left out."""
    if one.unknown_because:
        return f"? ({one.unknown_because})"
    marks = {"on": "+", "off": "-"}
    states = {"ats": one.ats, "pri": one.pri, "pasid": one.pasid, "acs": one.acs}
    shown = [f"{name}{marks[state]}" for name, state in states.items() if state in marks]
    if one.virtual_functions:
        shown.append(f"vfs {one.virtual_functions.enabled}/{one.virtual_functions.total}")
    elif one.physical_function:
        shown.append(f"vf of {one.physical_function}")
    return " ".join(shown) or "-"
