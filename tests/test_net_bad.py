"""Networks that cannot be had are refused, with what helps."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import vmlet
from conftest import lacks
from guests import guest
from networks import namespace, tap

Make = Callable[..., vmlet.VM]

pytestmark = pytest.mark.usefixtures("nothing_left")


def made(make: Make, *devices: vmlet.Net) -> vmlet.VM:
    """A VM that does nothing, with ``devices``."""
    return make(kernel=guest("spin"), memory="4M", devices=devices)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"user": True, "tap": "tap0"},
        {"user": "words"},
        {"tap": ""},
        {"tap": 3},
        {"fd": -1},
        {"fd": True},
        {"peer": 3},
        {"tap": "a", "mac": "1:2:3"},
        {"tap": "a", "mtu": 10},
        {"tap": "a", "mtu": 70_000},
        {"tap": "a", "vhost": "yes"},
    ],
)
def test_a_network_that_cannot_be_is_refused_at_once(settings: dict[str, object]) -> None:
    with pytest.raises(vmlet.ConfigError) as caught:
        vmlet.Net(**settings)  # type: ignore[arg-type]
    assert caught.value.remedy


def test_an_address_that_is_no_stations_is_refused(make: Make) -> None:
    ours, _ = vmlet.link()
    with pytest.raises(vmlet.ConfigError, match="mac"):
        made(make, vmlet.Net(peer=ours, mac="01:00:00:00:00:00"))


def test_an_end_of_a_link_goes_into_one_vm(make: Make) -> None:
    ours, _ = vmlet.link()
    made(make, vmlet.Net(peer=ours))
    with pytest.raises(vmlet.ConfigError, match="in a VM"):
        made(make, vmlet.Net(peer=ours))


def test_a_descriptor_that_carries_no_frames_is_refused_and_stays_open(make: Make) -> None:
    with Path("/dev/null").open() as file:
        with pytest.raises(vmlet.ConfigError, match="no tap interface"):
            made(make, vmlet.Net(fd=file.fileno()))
        os.fstat(file.fileno())
    with pytest.raises(OSError, match="dup"):
        made(make, vmlet.Net(fd=1 << 20))


def test_a_socket_of_the_users_stays_theirs(make: Make) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        made(make, vmlet.Net(fd=ours.fileno())).close()
        theirs.send(b"still open")
        assert ours.recv(20) == b"still open"


def test_a_name_that_no_interface_can_have_is_refused(make: Make) -> None:
    with pytest.raises(vmlet.ConfigError, match="no name of an interface"):
        made(make, vmlet.Net(tap="far-too-long-a-name"))


def test_a_tap_interface_that_is_in_use_is_refused_by_name(make: Make) -> None:
    with namespace():
        tap("tap7", "10.9.9.1/24")
        made(make, vmlet.Net(tap="tap7"))
        with pytest.raises(OSError, match="tap7") as caught:
            made(make, vmlet.Net(tap="tap7"))
        assert "Another program uses it" in str(getattr(caught.value, "remedy", ""))


def test_without_passt_the_error_says_how_to_install_it(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Which may have to be assembled, by a program.
    kernel = guest("spin")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match="passt") as caught:
        make(kernel=kernel, memory="4M", devices=[vmlet.Net(user=True)])
    assert "apt install passt" in str(getattr(caught.value, "remedy", ""))


def test_a_passt_that_cannot_work_says_why_and_leaves_nothing(make: Make) -> None:
    if shutil.which("passt") is None:
        lacks("passt", "the program passt")
    with namespace(), pytest.raises(vmlet.ConfigError, match="ended at once"):
        made(make, vmlet.Net(user=True))


def test_vhost_where_the_kernel_cannot_move_frames_is_refused(make: Make) -> None:
    ours, _ = vmlet.link()
    with pytest.raises(vmlet.ConfigError, match="vhost"):
        made(make, vmlet.Net(peer=ours, vhost=True))
