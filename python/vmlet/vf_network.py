"""MAC and VLAN of a network card's virtual functions, by the kernel's rtnetlink.

Source: rtnetlink(7) and ``include/uapi/linux/if_link.h`` of Linux (IFLA_VFINFO_LIST).
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from vmlet import _core
from vmlet.errors import ConfigError, HostError, StateError, UnsupportedError
from vmlet.inventory import PciDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["VfNetwork", "configure", "read"]

_RTM_GETLINK, _RTM_SETLINK, _NLMSG_ERROR = 18, 19, 2
_REQUEST, _ACKNOWLEDGE = 1, 4
_IFLA_VFINFO_LIST, _IFLA_EXT_MASK = 22, 29
_IFLA_VF_INFO, _IFLA_VF_MAC, _IFLA_VF_VLAN = 1, 1, 2
_RTEXT_FILTER_VF = 1
#: struct nlmsghdr, struct ifinfomsg, struct nlattr.
_HEADER, _LINK, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BxHiII"), struct.Struct("=HH")
#: struct ifla_vf_mac and struct ifla_vf_vlan.
_MAC, _VLAN = struct.Struct("=I6s26x"), struct.Struct("=III")
#: The flags of an attribute's type: nested, in network byte order.
_TYPE_BITS = 0x3FFF
#: A message about a card with hundreds of virtual functions.
_LONGEST = 1 << 20
_MOST_VLAN = 4094


@dataclass(frozen=True, slots=True)
class VfNetwork:
    """What the card has been told of a virtual function."""

    #: The card's interface ("eth0") and the function's number on it.
    interface: str
    number: int
    #: "02:00:00:00:00:01"; all zeros: the card or the function's driver chooses.
    mac: str
    #: 0: none.
    vlan: int


def read(vf: PciDevice) -> VfNetwork:
    """What a card has been told of the function."""
    interface, number = _place(vf)
    mask = _attribute(_IFLA_EXT_MASK, struct.pack("=I", _RTEXT_FILTER_VF))
    reply = _ask(_RTM_GETLINK, interface, 0, mask, f"{interface} cannot be read")
    for kind, infos in _attributes(reply[_LINK.size :]):
        for _, info in _attributes(infos) if kind == _IFLA_VFINFO_LIST else ():
            told = dict(_attributes(info))
            at, mac = _MAC.unpack_from(told[_IFLA_VF_MAC])
            if at == number:
                _, vlan, _ = _VLAN.unpack_from(told[_IFLA_VF_VLAN])
                return VfNetwork(interface, number, mac.hex(":"), vlan)
    raise UnsupportedError(
        f"{interface} tells nothing of its virtual function {number}",
        remedy="Its driver does not set MACs and VLANs; let who uses the function do it.",
    )


def configure(vf: PciDevice, mac: str | None, vlan: int | None) -> VfNetwork:
    """Tells a card what the function has; then what it has been told."""
    interface, number = _place(vf)
    for what in _wanted(number, mac, vlan):
        nested = _attribute(_IFLA_VFINFO_LIST, _attribute(_IFLA_VF_INFO, what))
        _ask(_RTM_SETLINK, interface, _ACKNOWLEDGE, nested, f"{vf.address} cannot be configured")
    return read(vf)


def _wanted(number: int, mac: str | None, vlan: int | None) -> list[bytes]:
    wanted = []
    if mac is not None:
        if not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", mac) or int(mac[:2], 16) & 1:
            raise ConfigError(
                f"mac cannot be {mac!r}",
                remedy='Give six bytes of which the first is even: "02:00:00:00:00:01".',
            )
        plain = bytes.fromhex(mac.replace(":", ""))
        wanted.append(_attribute(_IFLA_VF_MAC, _MAC.pack(number, plain)))
    if vlan is not None:
        if not 0 <= vlan <= _MOST_VLAN:
            raise ConfigError(
                f"vlan cannot be {vlan}", remedy=f"Give 1 to {_MOST_VLAN}, or 0 for none."
            )
        wanted.append(_attribute(_IFLA_VF_VLAN, _VLAN.pack(number, vlan, 0)))
    return wanted


def _place(vf: PciDevice) -> tuple[str, int]:
    """The interface of the card and the function's number on it."""
    physical = vf.physical_function
    if physical is None:
        raise ConfigError(
            f"{vf.address} is no virtual function",
            remedy="create_vfs() of a physical function makes some.",
        )
    every = _core.virtual_functions(physical)
    if vf.address not in every:
        raise StateError(f"{vf.address} is gone", remedy="Make virtual functions again.")
    folder = Path("/sys/bus/pci/devices", physical, "net")
    interfaces = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not interfaces:
        raise UnsupportedError(
            f"{physical} has no network interface here",
            remedy="Give it to a network driver of the host, in this network namespace.",
        )
    return interfaces[0], every.index(vf.address)


def _ask(kind: int, interface: str, flags: int, attributes: bytes, failed: str) -> bytes:
    """One request about a link; the body of the reply, none where it only acknowledges."""
    index = socket.if_nametoindex(interface)
    body = _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0) + attributes
    header = _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.send(header + body)
        reply = kernel.recv(_LONGEST)
    length, kind, *_ = _HEADER.unpack_from(reply)
    body = reply[_HEADER.size : length]
    if kind != _NLMSG_ERROR:
        return body
    (error,) = struct.unpack_from("=i", body)
    if error:
        _refuse(failed, -error)
    return b""


def _refuse(failed: str, error: int) -> None:
    if error == errno.EOPNOTSUPP:
        raise UnsupportedError(
            f"{failed}: its card's driver does not do that",
            remedy="Let who uses the virtual function set its MAC and VLAN.",
        )
    root = "Do it as root (CAP_NET_ADMIN)."
    remedy = (
        root if error in (errno.EPERM, errno.EACCES) else "The kernel's log may say why (dmesg)."
    )
    raise HostError(f"{failed}: {os.strerror(error)}", remedy=remedy, errno=error)


def _attribute(kind: int, value: bytes) -> bytes:
    padding = bytes(-len(value) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + padding


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_BITS, data[at + _ATTRIBUTE.size : at + length]
        at += length + -length % 4
