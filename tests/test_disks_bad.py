"""Images that cannot be used, and settings that cannot be."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import vmlet
from conftest import Engine, lacks, limit
from guests import guest

pytestmark = pytest.mark.usefixtures("nothing_left")


def refused(path: Path, **options: Any) -> vmlet.Error:
    """What a VM says that is asked for a disk of ``path``."""
    with pytest.raises(vmlet.Error) as caught:
        vmlet.VM(kernel=guest("spin"), memory="4M", devices=[vmlet.Disk(path, **options)])
    assert caught.value.remedy
    return caught.value


def test_a_missing_image_is_an_os_error_with_its_path(tmp_path: Path) -> None:
    error = refused(tmp_path / "missing.img")
    assert isinstance(error, OSError)
    assert error.errno == 2
    assert "missing.img" in error.message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_an_image_that_cannot_be_written_names_readonly(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(512))
    image.chmod(0o400)
    error = refused(image)
    assert "readonly=True" in str(error.remedy)


@pytest.mark.parametrize(
    ("size", "options", "words"),
    [
        (0, {}, "less than a sector"),
        (511, {}, "less than a sector"),
        (513, {}, "no multiple of 512"),
        (4096, {"format": "qcow2"}, "no qcow2 image"),
        (4096, {"format": "qcow2", "direct": True}, "only raw images"),
        (4096, {"serial": "x" * 21}, "serial"),
    ],
)
def test_images_that_cannot_be_are_refused_with_a_reason(
    tmp_path: Path, size: int, options: dict[str, Any], words: str
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(size))
    error = refused(image, **options)
    assert isinstance(error, vmlet.ConfigError)
    assert words in error.message


def test_folders_and_pipes_are_no_images(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in [
        (tmp_path, "folder"),
        (tmp_path / "pipe", "pipe"),
        (Path("/dev/null"), "character"),
    ]:
        assert kind in refused(path).message


def test_an_image_belongs_to_one_writer(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    with vmlet.VM(kernel=guest("spin"), memory="4M", devices=[vmlet.Disk(image)]):
        for options in ({}, {"readonly": True}, {"overlay": True}):
            assert "in use" in refused(image, **options).message
    vmlet.VM(kernel=guest("spin"), memory="4M", devices=[vmlet.Disk(image)]).close()


def test_a_qcow2_image_on_another_one_is_refused_by_its_name(tmp_path: Path) -> None:
    program = shutil.which("qemu-img")
    if program is None:
        lacks("qemu-img", "qemu-img is not here: install qemu-utils")
    secret, image = tmp_path / "secret", tmp_path / "disk.qcow2"
    secret.write_bytes(bytes(1 << 20))
    command = [program, "create", "-q", "-f", "qcow2", "-b", str(secret), "-F", "raw", str(image)]
    subprocess.run(command, check=True, timeout=limit(30))
    error = refused(image, format="qcow2")
    assert str(secret) in error.message
    assert "qemu-img rebase" in str(error.remedy)


@pytest.mark.parametrize(
    "settings",
    [
        {"path": ""},
        {"path": None},
        {"path": "x", "format": "vmdk"},
        {"path": "x", "queues": 0},
        {"path": "x", "queues": 65},
        {"path": "x", "queues": True},
        {"path": "x", "readonly": 1},
        {"path": "x", "serial": 7},
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_at_once(settings: dict[str, Any]) -> None:
    with pytest.raises(vmlet.ConfigError):
        vmlet.Disk(**settings)


def test_a_disk_is_frozen_and_compares_by_value() -> None:
    disk = vmlet.Disk("a", readonly=True)
    assert disk == vmlet.Disk("a", readonly=True)
    with pytest.raises(AttributeError):
        disk.path = "b"  # type: ignore[misc]


@pytest.mark.engines
def test_a_vm_with_a_disk_leaves_nothing(tmp_path: Path, engine: Engine) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    for _ in range(3):
        devices = [vmlet.Disk(image), vmlet.Rng()]
        with vmlet.VM(kernel=guest("spin"), memory="4M", engine=engine, devices=devices) as vm:
            vm.start()
