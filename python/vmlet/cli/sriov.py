"""``vmlet sriov``: virtual functions of cards with SR-IOV."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from vmlet import sriov
from vmlet.errors import ConfigError
from vmlet.inventory import PciDevice, pci_device, pci_devices

if TYPE_CHECKING:
    from vmlet.cli.commands import Commands

_ABOUT = "Virtual functions: one card handed to several users."
_LIST = """\
Lists the functions that can have virtual functions: how many there are, how many there can be, and
what each has of driver and IOMMU group."""
_CREATE = """\
Makes virtual functions, as root, and gives them to the kernel's driver vfio-pci. They stay until
"vmlet sriov remove"."""
_REMOVE = 'Removes what "vmlet sriov create" has made, as root. Nobody may have one open.'


def add_parser(commands: Commands) -> None:
    """Adds the command and its subcommands."""
    parser = commands.add_parser("sriov", help="virtual functions of cards", description=_ABOUT)
    inner = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listing = inner.add_parser("list", help="cards and their virtual functions", description=_LIST)
    listing.set_defaults(execute=execute_list)
    making = inner.add_parser("create", help="make virtual functions", description=_CREATE)
    making.add_argument("address", metavar="ADDRESS", help="0000:01:00.0")
    making.add_argument("count", metavar="COUNT", type=int, help="how many")
    making.add_argument("--no-driver", action="store_true", help="leave them without a driver")
    making.add_argument(
        "--mac",
        action="append",
        default=[],
        help="the MAC of the first, of the second, ...; may be repeated",
    )
    making.add_argument("--vlan", type=int, help="the VLAN of all")
    making.add_argument("--queues", type=int, help="queues of each, of an NVMe controller")
    making.add_argument("--interrupts", type=int, help="interrupts of each, likewise")
    making.set_defaults(execute=execute_create)
    removing = inner.add_parser("remove", help="remove them", description=_REMOVE)
    removing.add_argument("address", metavar="ADDRESS", help="0000:01:00.0")
    removing.set_defaults(execute=execute_remove)
    for one in (listing, making, removing):
        one.add_argument("--json", action="store_true", help="print a JSON array")


def execute_list(args: argparse.Namespace) -> int:
    """Prints cards and what they have."""
    return _show([one for one in pci_devices() if one.virtual_functions], args.json)


def execute_create(args: argparse.Namespace) -> int:
    """Makes virtual functions and prints them; none are left where one cannot be configured."""
    card = pci_device(args.address)
    if len(args.mac) > args.count:
        raise ConfigError(
            f"{len(args.mac)} MACs were given for {args.count} virtual functions",
            remedy="Give one each at most.",
        )
    made = card.create_vfs(
        args.count,
        driver=None if args.no_driver else "vfio-pci",
        queues=args.queues,
        interrupts=args.interrupts,
    )
    try:
        for number, one in enumerate(made):
            mac = args.mac[number] if number < len(args.mac) else None
            if mac is not None or args.vlan is not None:
                one.configure(mac=mac, vlan=args.vlan)
    except Exception:
        card.remove_vfs()
        raise
    return _show([pci_device(card.address)], args.json)


def execute_remove(args: argparse.Namespace) -> int:
    """Removes them and prints the card."""
    return _show([pci_device(args.address).remove_vfs()], args.json)


def _show(cards: list[PciDevice], as_json: bool) -> int:
    pairs = [(card, sriov.functions(card.address)) for card in cards]
    if as_json:
        found = [{**asdict(card), "vfs": [asdict(one) for one in vfs]} for card, vfs in pairs]
        print(json.dumps(found, indent=2))
        return 0
    for card, vfs in pairs:
        there = card.virtual_functions
        count = f"{there.enabled}/{there.total}" if there else "0/0"
        print(f"{card.address}  {card.driver or '-'}  vfs {count}")
        for one in vfs:
            print(f"  {one.address}  {one.driver or '-'}  group {_group(one)}")
    return 0


def _group(one: PciDevice) -> str:
    return str(one.group.number) if one.group else "-"
