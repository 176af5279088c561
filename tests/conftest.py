"""What all tests share.

Markers say what a test needs; a test whose need is not met here is skipped by name, and a need
that ``VMLET_REQUIRE`` lists (comma-separated) turns the skip into a failure:

* ``kvm``: VMs can be made.
* ``linux``: the engine runs an operating system's kernel. Decided by a probe that runs a guest.

Every timeout goes through `limit`, which multiplies by ``VMLET_TIME_FACTOR``: an emulated host is
slower by that much.
"""

from __future__ import annotations

import functools
import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vmlet

_FACTOR = float(os.environ.get("VMLET_TIME_FACTOR", "1"))
_REQUIRED = set(filter(None, os.environ.get("VMLET_REQUIRE", "").split(",")))


def limit(seconds: float) -> float:
    """A timeout for this place."""
    return seconds * _FACTOR


@functools.cache
def _missing(need: str) -> str | None:
    """Why ``need`` is not met here; None when it is."""
    found = vmlet.capabilities()
    met = {"kvm": found["usable"], "linux": found["usable"] and found["runs_kernels"]}
    return None if met[need] else str(found["detail"])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "kvm: VMs can be made here")
    config.addinivalue_line("markers", "linux: the engine runs an operating system's kernel")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for need in ("kvm", "linux"):
        if item.get_closest_marker(need) is None:
            continue
        reason = _missing(need)
        if reason is None:
            continue
        if need in _REQUIRED:
            pytest.fail(f"{need} is required here, and missing: {reason}")
        pytest.skip(f"needs {need}: {reason}")


def _descriptors() -> set[str]:
    names = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            names.add(f"{entry.name} {entry.readlink()}")
        except OSError:
            continue  # The descriptor of the listing itself.
    return {name for name in names if "kvm" in name or "vmlet" in name}


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Descriptors of VMs and threads of vCPUs are as before when the test is over."""
    vmlet._core.drain()
    before = _descriptors()
    yield
    gc.collect()
    vmlet._core.drain()
    assert _descriptors() <= before
    assert not [name for name in _thread_names() if name.startswith("vmlet-vcpu")]


def _thread_names() -> list[str]:
    names = []
    for task in Path("/proc/self/task").iterdir():
        try:
            names.append((task / "comm").read_text().strip())
        except OSError:
            continue
    assert threading.main_thread().is_alive()
    return names


@functools.cache
def kernels() -> dict[str, str]:
    """Names and paths of the kernels that ci/kernels has unpacked."""
    text = os.environ.get("VMLET_KERNELS")
    index = Path(text) if text else Path(__file__).parent.parent / "target" / "kernels.txt"
    if not index.exists():
        pytest.skip("no kernels here: run ci/kernels first")
    return dict(line.split("=", 1) for line in index.read_text().split())


@functools.cache
def initramfs(extra: str = "", modules: tuple[str, ...] = (), kernel: str = "") -> bytes:
    """A root of busybox with a shell; ``extra`` runs before the shell."""
    script = f"""#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /bin /sbin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*.ko; do [ -e "$module" ] && insmod "$module"; done
{extra}
exec setsid cttyhack sh
"""
    busybox = Path("/bin/busybox").read_bytes()
    return vmlet.build_initramfs(
        files={"init": script.encode(), "bin/busybox": busybox},
        modules=modules,
        modules_directory=kernels()[f"{kernel}-modules"] if modules else None,
    )


@pytest.fixture
def make() -> Iterator[Callable[..., vmlet.VM]]:
    """Makes VMs that are closed at the end of the test."""
    made: list[vmlet.VM] = []

    def make(**settings: object) -> vmlet.VM:
        vm = vmlet.VM(**settings)  # type: ignore[arg-type]
        made.append(vm)
        return vm

    yield make
    for vm in made:
        vm.close()
