"""What tests of networks share: a network namespace of their own, guests with an interface."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import conftest
import vmlet
from conftest import initramfs, kernels, lacks, limit

KERNEL = "linux-6.1-cloud"
MODULES = ("virtio_pci", "virtio_net")
_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def _namespace_call(call: str, *arguments: int) -> None:
    if getattr(_LIBC, call)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


@contextmanager
def namespace() -> Iterator[None]:
    """This thread, and what it starts, in a network of its own."""
    if os.geteuid() or not shutil.which("ip") or not Path("/dev/net/tun").exists():
        lacks("tap", "network namespaces and tap interfaces take root, iproute2 and /dev/net/tun")
    with Path("/proc/thread-self/ns/net").open() as home:
        try:
            _namespace_call("unshare", _NEWNET)
        except OSError as error:
            lacks("tap", str(error))
        try:
            ip("link set lo up")
            yield
        finally:
            _namespace_call("setns", home.fileno(), _NEWNET)


def ip(words: str) -> None:
    """Runs the program ip."""
    subprocess.run(["ip", *words.split()], check=True)


def tap(name: str, address: str) -> None:
    """A tap interface that is up."""
    ip(f"tuntap add dev {name} mode tap")
    ip(f"addr add {address} dev {name}")
    ip(f"link set {name} up")


@contextmanager
def _serving(address: str, talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that has one guest to ``talk`` to; its port."""
    with socket.create_server((address, 0)) as server:
        server.settimeout(limit(120))

        def run() -> None:
            peer, _ = server.accept()
            with peer:
                talk(peer)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(limit(60))
        assert not thread.is_alive()


def serve(
    address: str, pieces: list[bytes], between: Callable[[], None]
) -> AbstractContextManager[int]:
    """A server that sends one guest ``pieces``, with a call before each but the first; its port."""

    def talk(peer: socket.socket) -> None:
        for number, piece in enumerate(pieces):
            if number:
                between()
            peer.sendall(piece)

    return _serving(address, talk)


def collect(
    address: str, got: bytearray, length: int, middle: Callable[[], None]
) -> AbstractContextManager[int]:
    """A server that adds ``length`` bytes of one guest's to ``got``, with a call in the middle; its
    port."""

    def talk(peer: socket.socket) -> None:
        for half in (length // 2, length):
            while len(got) < half and (piece := peer.recv(1 << 16)):
                got.extend(piece)
            if half < length:
                middle()

    return _serving(address, talk)


def guest(make: Callable[..., vmlet.VM], net: vmlet.Net, address: str, **more: object) -> vmlet.VM:
    """A shell in a guest whose eth0 has ``address`` and length of its network."""
    network = f"dmesg -n 1; ip link set eth0 up; ip addr add {address} dev eth0"
    image = initramfs(extra=network, modules=MODULES, kernel=KERNEL)
    settings = {"kernel": kernels()[KERNEL], "initramfs": image, "devices": [net], **more}
    vm = make(**settings)
    vm.start()
    vm.console.expect("# ", timeout=limit(120))
    return vm


#: What a line prints in the shell of a VM.
command = functools.partial(conftest.command, timeout=60)


def pings(vm: vmlet.VM, address: str) -> bool:
    """Whether ``vm`` hears from ``address`` each time, though it is paused meanwhile."""

    def pauses() -> None:
        for _ in range(5):
            vm.pause()
            vm.resume()
            time.sleep(0.1)

    return "3 packets received" in command(vm, f"ping -c 3 -i 0.2 {address}", meanwhile=pauses)


def digest(pieces: list[bytes]) -> str:
    """The sum of what a guest is sent."""
    return hashlib.md5(b"".join(pieces), usedforsecurity=False).hexdigest()


def answer(frame: bytes) -> bytes | None:
    """What 10.9.1.2 says to an ARP request or a ping."""
    own, guest, rest = bytes([2, 0, 0, 0, 0, 2]), frame[6:12], frame[12:]
    if rest[:2] == b"\x08\x06" and frame[38:42] == bytes([10, 9, 1, 2]):
        reply = frame[14:20] + b"\x00\x02" + own + frame[38:42] + frame[22:32]
        return guest + own + rest[:2] + reply
    if rest[:2] == b"\x08\x00" and frame[23] == 1 and frame[34] == 8:
        # The type becomes that of an answer, and the sum more by the difference.
        total = int.from_bytes(frame[36:38], "big") + 0x800
        total = (total & 0xFFFF) + (total >> 16)
        body = b"\x00\x00" + total.to_bytes(2, "big") + frame[38:]
        return guest + own + frame[12:26] + frame[30:34] + frame[26:30] + body
    return None


def respond(end: socket.socket) -> None:
    """Answers until the other side is gone."""
    with end:
        while frame := end.recv(2048):
            if said := answer(frame):
                end.send(said)


@contextmanager
def responder() -> Iterator[vmlet.LinkEnd]:
    """An end of a link behind which 10.9.1.2 answers pings until the VM that has it is gone, or the
    device."""
    ours, theirs = vmlet.link()
    thread = threading.Thread(target=respond, args=[theirs._take()], daemon=True)
    thread.start()
    yield ours
    thread.join(limit(30))
    assert not thread.is_alive()
