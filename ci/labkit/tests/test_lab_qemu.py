"""The emulator of AMD-V: what a saved state depends on, and how its end is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from labkit.flavour import AMD, AMDVI, CARDS, IOMMUFD, NVME, VIOMMU, VTD
from labkit.machine import Config, reported_status, split_backends
from labkit.runner import _placed, with_backends


def config(extra: tuple[str, ...] = ()) -> Config:
    return Config(AMD, Path("kernel"), Path("initrd"), cpus=2, memory=1024, extra=extra)


def test_back_ends_are_no_part_of_the_machine() -> None:
    asked = ("-device", "edu", "-netdev", "user,id=n0", "-cpu", "max", "-trace", "x")
    machine, backends = split_backends(asked)
    assert machine == ("-device", "edu", "-cpu", "max")
    assert backends == ("-netdev", "user,id=n0", "-trace", "x")


def test_a_back_end_leaves_the_shape_as_it_is() -> None:
    assert config(("-netdev", "user,id=n0")).shape() == config().shape()


def test_a_device_changes_the_shape() -> None:
    assert config(("-device", "edu")).shape() != config().shape()


def test_what_the_kernel_is_told_changes_the_shape() -> None:
    shape = replace(config(), append=("nohz_full=2", "quiet")).shape()
    assert shape[shape.index("-append") + 1].endswith("irqaffinity=1-2 nohz_full=2 quiet")


def test_the_shape_names_no_path_of_this_host() -> None:
    assert not [word for word in config().shape() if word in ("kernel", "initrd")]


def test_a_flavour_that_only_plugs_devices_in_shares_the_saved_state() -> None:
    saved = replace(config(), flavour=CARDS, cpus=CARDS.cpus)
    assert (saved.shape(), CARDS.state, saved.extra) == (config().shape(), AMD.state, ())


def test_what_its_devices_need_and_what_is_traced_leave_the_shape_as_it_is() -> None:
    saved = replace(config(), flavour=VTD, cpus=VTD.cpus)
    assert (VTD.state, saved.extra) == (AMD.state, ())
    running = with_backends(saved, Path("/out"))
    assert running.shape() == saved.shape()
    trace = ("-trace", "vtd_inv_desc", "-D", "/out/emulator.log")
    assert running.extra == (*VTD.backends, *trace)


def test_devices_of_the_flavour_come_before_those_that_are_asked_for() -> None:
    placed = _placed((*VTD.plugged, "edu"), VTD.root_ports)
    assert placed[0] == f"{VTD.plugged[0]},bus=rp0"
    assert placed[-1] == f"edu,bus=rp{len(VTD.plugged)}"


def test_devices_of_the_flavour_fit_the_root_ports() -> None:
    placed = _placed(VTD.plugged, VTD.root_ports)
    ports = {device.partition("bus=rp")[2].partition(",")[0] for device in placed}
    assert {int(port) for port in ports} == set(range(VTD.root_ports))


def test_a_machine_without_root_ports_has_its_devices_on_the_root_bus() -> None:
    assert AMDVI.root_ports == 0
    assert _placed(AMDVI.plugged, AMDVI.root_ports) == list(AMDVI.plugged)


def test_among_several_processors_the_first_has_nothing_to_run() -> None:
    shape = " ".join(config().shape())
    assert "-smp 3 " in shape
    assert "isolcpus=0 irqaffinity=1-2" in shape


def test_a_machine_with_devices_to_pass_on_has_one_processor_that_runs_all() -> None:
    for flavour in (VTD, IOMMUFD, VIOMMU, NVME, AMDVI):
        shape = " ".join(replace(config(), flavour=flavour, cpus=flavour.cpus).shape())
        assert "-smp 1 " in shape
        assert "isolcpus" not in shape


@pytest.mark.parametrize("status", [0, 1, 7, 63])
def test_a_status_comes_back_through_the_exit_port(status: int) -> None:
    written = 64 | status
    assert reported_status((written << 1 | 1) & 0xFF) == status


@pytest.mark.parametrize("exit_status", [0, 1, 2, 124, -9])
def test_the_emulators_own_end_reports_nothing(exit_status: int) -> None:
    assert reported_status(exit_status) is None
