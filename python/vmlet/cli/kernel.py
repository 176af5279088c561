"""``vmlet kernel``: the kernels that can be booted, and fetching one."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from vmlet import kernels
from vmlet.cli.progress import ProgressDisplay
from vmlet.kernels.fetching import DEFAULT_LIMIT, DEFAULT_PACKAGE

if TYPE_CHECKING:
    from vmlet.cli.commands import Commands

_LIST = "Lists the kernels of /boot, of /lib/modules and of the user's cache, newest first."
_FETCH = """\
Fetches a kernel package of the distribution and unpacks it, without root, into the user's cache
($VMLET_CACHE, else vmlet in $XDG_CACHE_HOME or ~/.cache). apt does the work with the host's own
sources, and verifies the archive's signature and the package's digest."""
_NAME = """\
a package, a series (6.1), a series with flavour (6.12-cloud) or a flavour; default: the newest
kernel made for virtual machines"""
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def add_parser(commands: Commands) -> None:
    """Adds the command and its two subcommands."""
    parser = commands.add_parser("kernel", help="list and fetch kernels", description=_LIST)
    inner = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listing = inner.add_parser("list", help="kernels known here", description=_LIST)
    listing.add_argument("--json", action="store_true", help="print a JSON array")
    listing.set_defaults(execute=execute_list)
    fetching = inner.add_parser("fetch", help="fetch one", description=_FETCH)
    fetching.add_argument("name", nargs="?", default=DEFAULT_PACKAGE, metavar="NAME", help=_NAME)
    fetching.add_argument("--suite", metavar="S", help="another suite, such as bookworm-backports")
    fetching.add_argument("--mirror", metavar="URL", help="another archive (needs --suite)")
    fetching.add_argument(
        "--component", metavar="C", action="append", help="its components; default: main"
    )
    fetching.add_argument("--keyring", metavar="FILE", help="the keys that may sign the archive")
    fetching.add_argument(
        "--max-unpacked",
        metavar="SIZE",
        type=parse_size,
        default=DEFAULT_LIMIT,
        help="refuse a package that unpacks to more (default 1G)",
    )
    fetching.add_argument("--refresh", action="store_true", help="fetch even what is in the cache")
    fetching.add_argument("--json", action="store_true", help="print a JSON object")
    fetching.set_defaults(execute=execute_fetch)


def parse_size(text: str) -> int:
    """Reads ``1G``, ``512M``, ``4096``."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if not (number.isascii() and number.isdigit()) or unit not in _UNITS or len(number) > 15:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512M or 1G")
    return int(number) * _UNITS[unit]


def execute_list(args: argparse.Namespace) -> int:
    """Prints the known kernels."""
    found = kernels.list_kernels()
    if args.json:
        print(json.dumps([as_dict(one) for one in found], indent=2))
        return 0
    if not found:
        print("no kernels are known here; vmlet kernel fetch gets one")
    width = max((len(one.name) for one in found), default=0)
    for one in found:
        print(f"{one.name:<{width}}  {one.origin:<5}  {one.path}")
    return 0


def execute_fetch(args: argparse.Namespace) -> int:
    """Fetches a kernel and prints where it is."""
    with ProgressDisplay() as progress:
        found = kernels.fetch(
            args.name,
            suite=args.suite,
            mirror=args.mirror,
            components=args.component or ["main"],
            keyring=args.keyring,
            max_unpacked=args.max_unpacked,
            refresh=args.refresh,
            progress=progress,
        )
    print(json.dumps(as_dict(found), indent=2) if args.json else found.path)
    return 0


def as_dict(kernel: kernels.Kernel) -> dict[str, Any]:
    """A kernel for JSON."""
    return {
        "name": kernel.name,
        "version": kernel.version,
        "flavour": kernel.flavour,
        "path": str(kernel.path),
        "modules_dir": None if kernel.modules_dir is None else str(kernel.modules_dir),
        "origin": kernel.origin,
        "package": kernel.package,
    }
