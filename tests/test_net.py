"""Networks: Debian's kernel talks to the host, to another guest, and through passt."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import vmlet
from conftest import Engine, initramfs, kernels, lacks, limit
from networks import (
    KERNEL,
    MODULES,
    collect,
    command,
    digest,
    guest,
    ip,
    namespace,
    pings,
    responder,
    serve,
    tap,
)

pytestmark = pytest.mark.linux

Make = Callable[..., vmlet.VM]

#: Two halves, between which a guest is paused.
PIECES = [os.urandom(1 << 20) for _ in range(2)]
LENGTH = sum(map(len, PIECES))


def copies_across_a_pause(vm: vmlet.VM, listen: str, address: str) -> None:
    """``vm`` reads from the host's ``listen``, which it knows as ``address``, and writes to it."""

    def pause() -> None:
        vm.pause()
        time.sleep(0.05)
        vm.resume()

    with serve(listen, PIECES, pause) as port:
        # Its input never ends: a passt of 2023 stalls when one side of a stream is shut.
        command(vm, "mkfifo /open")
        summed = command(vm, f"nc {address} {port} <> /open | tee /copy | md5sum", timeout=120)
    assert summed.split()[0] == digest(PIECES)
    got = bytearray()
    with collect(listen, got, LENGTH, pause) as port:
        command(vm, f"nc {address} {port} < /copy", timeout=120)
    assert bytes(got) == b"".join(PIECES)


@pytest.mark.engines
def test_a_guest_pings_the_host_over_taps_of_both_ways_and_copies_across_a_pause(
    make: Make, engine: Engine
) -> None:
    with namespace():
        for number in range(2):
            tap(f"tap{number}", f"10.9.{number}.1/24")
        nets = [vmlet.Net(tap="tap0", vhost=False), vmlet.Net(tap="tap1")]
        vm = guest(make, nets[0], "10.9.0.2/24", devices=nets, engine=engine)
        command(vm, "ip link set eth1 up; ip addr add 10.9.1.2/24 dev eth1")
        for number in range(2):
            assert pings(vm, f"10.9.{number}.1")
            copies_across_a_pause(vm, f"10.9.{number}.1", f"10.9.{number}.1")
            assert command(vm, f"cat /sys/class/net/eth{number}/mtu") == "1500"
        vm.close()
    if engine == "kvm" and not Path("/dev/vhost-net").exists():
        lacks("vhost-net", "without /dev/vhost-net this process moves all frames")


@pytest.mark.engines
def test_two_guests_ping_each_other_also_after_a_reset_and_see_the_cable_pulled(
    make: Make, engine: Engine
) -> None:
    left, right = vmlet.link()
    first = guest(make, vmlet.Net(peer=left), "10.9.1.1/24", engine=engine)
    net = vmlet.Net(peer=right, mtu=9000, mac="02:00:00:00:00:07")
    second = guest(make, net, "10.9.1.2/24", engine=engine)
    assert pings(first, "10.9.1.2")
    assert pings(second, "10.9.1.1")
    assert command(second, "cat /sys/class/net/eth0/mtu") == "9000"
    again = (
        "cd /sys/bus/virtio/drivers/virtio_net; d=$(echo virtio*); echo $d > unbind; echo $d > bind"
    )
    command(first, f"{again}; ip link set eth0 up; ip addr add 10.9.1.1/24 dev eth0")
    assert pings(first, "10.9.1.2")
    assert command(first, "ip neigh show 10.9.1.2 | cut -d' ' -f5") == "02:00:00:00:00:07"
    second.close()
    gone = "while [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do sleep 0.1; done; echo down"
    assert command(first, gone) == "down"


@pytest.mark.engines
def test_a_guest_pings_and_copies_from_the_host_by_passt(make: Make, engine: Engine) -> None:
    if shutil.which("passt") is None:
        lacks("passt", "the program passt")
    with namespace():
        # passt takes the host's addresses and routes for the guest.
        tap("outside", "10.9.2.2/24")
        ip("route add default via 10.9.2.1")
        # It pings without privileges, who else of the host's is asked for.
        Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647")
        ip("addr add 10.9.3.1/32 dev lo")
        vm = guest(make, vmlet.Net(user=True), "10.9.2.2/24", engine=engine)
        command(vm, "ip route add default via 10.9.2.1")
        assert pings(vm, "10.9.3.1")
        copies_across_a_pause(vm, "127.0.0.1", "10.9.2.1")
        vm.close()
    deadline = time.monotonic() + limit(10)
    while any("passt" in child for child in children()) and time.monotonic() < deadline:
        vmlet._core.drain()
        time.sleep(0.05)
    assert not [child for child in children() if "passt" in child]


def children() -> list[str]:
    """Names of the processes that this one has started, the ended ones too."""
    lists = [said(task / "children") for task in Path("/proc/self/task").iterdir()]
    return [said(Path(f"/proc/{child}/comm")) for text in lists for child in text.split()]


def said(file: Path) -> str:
    """What the kernel says of a thread or a process; nothing of one that is gone by now."""
    try:
        return file.read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


#: Asks for an address three times. While a guest is idle its time jumps, past every answer; so the
#: second one is busy until it has heard.
ASKS = "ping -c 3 -i 0.2 10.9.1.2"
HEARS = "ping -c 3 -A 10.9.1.2 > /said & while kill -0 $! 2> /dev/null; do :; done; cat /said"


def asking(peer: vmlet.LinkEnd, line: str) -> dict[str, object]:
    """What a guest is made of that runs ``line``, says what happened and powers off."""
    before = "ip link set eth0 up; ip addr add 10.9.1.1/24 dev eth0"
    after = "cat /proc/interrupts; date; poweroff -f"
    return {
        "kernel": kernels()[KERNEL],
        "initramfs": initramfs(f"{before}\n{line}\n{after}", MODULES, KERNEL),
        "cmdline": f"{vmlet.default_cmdline('soft')} quiet",
        "clock": "icount",
        "devices": [vmlet.Net(peer=peer)],
    }


def ending(vm: vmlet.VM) -> tuple[str, int, str, bytes]:
    """How a run ends, and everything that tells it from another."""
    event = vm.wait(timeout=limit(240))
    return event.kind, vm.instructions, vm.state_hash(), vm.console.read()


@pytest.mark.interpreted
def test_a_counted_boot_with_a_network_is_the_same_run_after_run(make: Make) -> None:
    endings = []
    for _ in range(2):
        ours, _silent = vmlet.link()
        vm = make(**asking(ours, ASKS))
        vm.start()
        endings.append(ending(vm))
        vm.close()
    assert endings[0] == endings[1]
    assert endings[0][0] == "poweroff"
    assert b"3 packets transmitted, 0 packets received" in endings[0][3]


@pytest.mark.interpreted
def test_a_recorded_run_that_heard_from_its_network_replays(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "net.rec"
    with responder() as ours:
        vm = make(**asking(ours, HEARS))
        vm.record(path)
        vm.start()
        recorded = ending(vm)
        vm.close()
    assert b"3 packets transmitted, 3 packets received" in recorded[3]
    silent, _other = vmlet.link()
    settings = {key: value for key, value in asking(silent, HEARS).items() if key != "clock"}
    with vmlet.VM.replay(path, **settings) as again:
        again.start()
        assert ending(again) == recorded
