"""Network devices."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmlet._core import attach_net
from vmlet.devices.model import Model
from vmlet.errors import ConfigError

if TYPE_CHECKING:
    import socket

    from vmlet._core import Machine

__all__ = ["LinkEnd", "Net", "link"]

_MAC = re.compile("[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")


class LinkEnd:
    """One end of a link between two VMs, for one `Net`."""

    def __init__(self, end: socket.socket) -> None:
        self._socket: socket.socket | None = end

    def __repr__(self) -> str:
        return "LinkEnd()"

    def __del__(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def _take(self) -> socket.socket:
        taken, self._socket = self._socket, None
        if taken is None:
            raise ConfigError(
                "this end of the link is in a VM", remedy="Make another vmlet.link()."
            )
        return taken


def link() -> tuple[LinkEnd, LinkEnd]:
    """A link between two VMs: give each end to a `Net(peer=...)`.

    When one of the VMs goes, the other sees its cable pulled.
    """
    import socket

    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (left, right):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return LinkEnd(left), LinkEnd(right)


@dataclass(frozen=True)
class Net(Model):
    """A network device (virtio-net), which Linux calls eth0 or by its place.

    One of the first four says where its frames go.

    Args:
        user: networking without privileges, by the program passt: the guest gets the host's own
            address by DHCP and reaches what the host reaches. A sequence of words: more arguments
            for passt, such as ``["--tcp-ports", "2222:22"]``.
        tap: the name of a tap interface of the host. One that does not exist is made, with the
            privilege for that, and goes with the VM.
        fd: an open tap interface, or a Unix socket whose messages (SEQPACKET, DGRAM) are frames, or
            a STREAM of frames with their lengths in four bytes before them, as QEMU's. It stays
            yours.
        peer: an end of a `link`.
        mac: its address. By default a random one of those that are administered locally; with
            ``clock="icount"`` one that follows from the device's root port.
        mtu: the longest packet that the guest is to send, without the Ethernet header.
        vhost: for tap interfaces, whether the host's kernel moves frames by itself (vhost-net): by
            default where it can.
    """

    user: bool | Sequence[str] = False
    tap: str | None = None
    fd: int | None = None
    peer: LinkEnd | None = None
    mac: str | None = None
    mtu: int | None = None
    vhost: bool | None = None

    def __post_init__(self) -> None:
        given = [self.user is not False, *(x is not None for x in (self.tap, self.fd, self.peer))]
        if sum(given) != 1:
            raise ConfigError(
                "a network device has one way for its frames",
                remedy="Give one of user, tap, fd and peer.",
            )
        if isinstance(self.user, str):
            raise ConfigError(
                f"user cannot be {self.user!r}", remedy="Give True, or a list of words."
            )
        if self.tap is not None and (not isinstance(self.tap, str) or not self.tap):
            raise ConfigError(f"tap cannot be {self.tap!r}", remedy="Name an interface.")
        if self.fd is not None and not _is_whole(self.fd, 0, 1 << 30):
            raise ConfigError(f"fd cannot be {self.fd!r}", remedy="Give an open descriptor.")
        if self.peer is not None and not isinstance(self.peer, LinkEnd):
            raise ConfigError(
                f"peer cannot be {self.peer!r}", remedy="Give an end of a vmlet.link()."
            )
        if self.mac is not None and not (isinstance(self.mac, str) and _MAC.fullmatch(self.mac)):
            raise ConfigError(f"mac cannot be {self.mac!r}", remedy="Such as '02:00:00:00:00:01'.")
        if self.mtu is not None and not _is_whole(self.mtu, 68, 65520):
            raise ConfigError(f"mtu cannot be {self.mtu!r}", remedy="Give 68 to 65520 bytes.")
        if self.vhost not in (None, False, True):
            raise ConfigError(f"vhost cannot be {self.vhost!r}", remedy="Give True, False or None.")

    def _plug(self, machine: Machine, port: int | None) -> int:
        if self.peer is None:
            return self._attach(machine, port, self.fd)
        with self.peer._take() as end:
            return self._attach(machine, port, end.fileno())

    def _attach(self, machine: Machine, port: int | None, fd: int | None) -> int:
        words: list[str] | None = None if self.user is False else []
        if self.user is not True and self.user is not False:
            words = [os.fspath(word) for word in self.user]
        return attach_net(
            machine,
            port,
            user=words,
            tap=self.tap,
            fd=fd,
            mac=self.mac,
            mtu=self.mtu,
            vhost=self.vhost,
        )


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
