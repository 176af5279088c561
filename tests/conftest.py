"""What all tests share.

Markers say what a test needs; a test whose need is not met here is skipped by name, and a need
that ``VMLET_REQUIRE`` lists (comma-separated) turns the skip into a failure:

* ``linux``: some engine boots a kernel. The software CPU does everywhere; where ``kvm-linux`` is
  required, KVM has to do it.
* ``kvm``: VMs can be made on ``/dev/kvm``, if only small ones.
* ``kvm_linux``: KVM runs an operating system's kernel. Decided by a probe that runs a guest. The
  need is called ``kvm-linux``.
* ``engines`` is no need: the test runs on KVM and again on the software CPU; `make` knows, and a
  test that makes its own VM takes the argument ``engine``. A lab has only KVM to be tested.
* ``kernels`` and tools have no marker: a test that finds one missing calls `lacks`.

Every timeout goes through `limit`, which multiplies by ``VMLET_TIME_FACTOR``: an emulated host is
slower by that much.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import pytest

import vmlet

Engine = Literal["auto", "kvm", "soft"]
#: What the fixture of that name gives.
Shared = Callable[[Engine, Callable[[], vmlet.VM]], vmlet.VM]

#: What kernels of guests leave out on a slow host, beside the default command line.
_GUEST_CMDLINE = os.environ.get("VMLET_GUEST_CMDLINE", "")
_FACTOR = float(os.environ.get("VMLET_TIME_FACTOR", "1"))
_REQUIRED = set(filter(None, os.environ.get("VMLET_REQUIRE", "").split(",")))


def pytest_collection_finish() -> None:
    """Takes what there is before the first test out of the garbage collector's sight.

    It stays until the last one, and tests collect again and again: on an emulated host the search
    through all of it would be most of the time that some of them take.
    """
    gc.collect()
    gc.freeze()


def limit(seconds: float) -> float:
    """A timeout for this place."""
    return seconds * _FACTOR


@functools.cache
def _missing(need: str) -> str | None:
    """Why ``need`` is not met here; None when it is."""
    found = vmlet.capabilities()
    if need == "linux":
        return _missing("kvm-linux") if "kvm-linux" in _REQUIRED else None
    met = found["usable"] and (need == "kvm" or found["runs_kernels"])
    return None if met else str(found["detail"])


#: Markers and what they stand for.
_NEEDS = {
    "linux": "some engine boots a kernel",
    "kvm": "VMs can be made on /dev/kvm",
    "kvm_linux": "KVM runs an operating system's kernel",
}


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts what runs in the background with interrupts ignored, which programs inherit:
    # then Ctrl-C would do nothing in those that the tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, meaning in _NEEDS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    config.addinivalue_line("markers", "engines: runs on every engine")
    config.addinivalue_line("markers", "interpreted: for the software CPU alone")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("engines") is None:
        return
    boots = metafunc.definition.get_closest_marker("linux") is not None
    need = pytest.mark.kvm_linux if boots else pytest.mark.kvm
    engines = [pytest.param("kvm", marks=need)]
    if "VMLET_LAB" not in os.environ:
        engines.append(pytest.param("soft"))
    metafunc.fixturenames.append("engine")
    metafunc.parametrize("engine", engines)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if "VMLET_LAB" in os.environ and item.get_closest_marker("interpreted"):
        pytest.skip("an interpreter needs no lab")
    for name in _NEEDS:
        if item.get_closest_marker(name) is None:
            continue
        need = name.replace("_", "-")
        reason = _missing(need)
        if reason is not None:
            lacks(need, reason)


def lacks(need: str, reason: str) -> NoReturn:
    """Skips the test for want of ``need``, or fails it where ``VMLET_REQUIRE`` lists that."""
    if need in _REQUIRED:
        pytest.fail(f"{need} is required here, and missing: {reason}")
    pytest.skip(f"needs {need}: {reason}")


@dataclass(frozen=True)
class Holdings:
    """What this process has of the system."""

    descriptors: int
    #: Names of the threads that belong to VMs, but for the one that frees them.
    threads: tuple[str, ...]
    #: Bytes that are mapped to be written.
    writable: int
    #: Mappings of vCPUs.
    vcpus: int

    @classmethod
    def now(cls) -> Holdings:
        """As it is when everything that was dropped is gone."""
        open_files = descriptors()
        maps = Path("/proc/self/maps").read_text().splitlines()
        names = _task_names()
        return cls(
            descriptors=open_files,
            threads=tuple(sorted(name for name in names if name.startswith("vmlet-vcpu"))),
            writable=sum(_length(line) for line in maps if line.split()[1].startswith("rw")),
            vcpus=sum("kvm-vcpu" in line for line in maps),
        )


def descriptors() -> int:
    """Descriptors of this process, when everything that was dropped is gone."""
    gc.collect()
    vmlet._core.drain()
    return len(list(Path("/proc/self/fd").iterdir()))


def locked() -> int:
    """Bytes that this process has locked, or that iommufd has pinned for it."""
    found = re.findall(r"Vm(?:Lck|Pin):\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert len(found) == 2
    return sum(map(int, found)) * 1024


def holdings() -> tuple[int, int]:
    """Descriptors that this process has, and bytes that it has locked."""
    return descriptors(), locked()


def _settled() -> Holdings:
    """What this process has when the threads of VMs are gone, each in its own time."""
    deadline = time.monotonic() + limit(5)
    while (now := Holdings.now()).threads and time.monotonic() < deadline:
        time.sleep(0.01)
    return now


def _task_names() -> list[str]:
    """The names of the threads that are not on their way out."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            names.append((task / "comm").read_text().strip())
    return names


def _length(line: str) -> int:
    first, end = line.split()[0].split("-")
    return int(end, 16) - int(first, 16)


#: What may stay: the C library keeps up to 40 MiB of the stacks of threads that have ended.
#: Less than the memory of most VMs here.
SLACK = 56 << 20


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Descriptors, threads and memory are as before when the test is over."""
    vmlet._core.drain()
    before = _settled()
    yield
    after = _settled()
    assert after.descriptors == before.descriptors
    assert after.threads == before.threads == ()
    assert after.vcpus == before.vcpus
    assert after.writable <= before.writable + SLACK


@functools.cache
def kernels() -> dict[str, str]:
    """Names and paths of the kernels that ci/kernels has unpacked."""
    target = Path(__file__).parent.parent / "target"
    if text := os.environ.get("VMLET_KERNELS"):
        return _listed(Path(text))
    if (listed := target / "kernels.txt").exists():
        return _listed(listed)
    # The index that ci/kernels keeps in its cache.
    index = Path(os.environ.get("VMLET_CACHE", target / "lab")) / "kernels" / "index.json"
    known = json.loads(index.read_text()) if index.exists() else {}
    if "linux-6.1-cloud" not in known:  # the lab's own kernel is there before the guests'
        lacks("linux", "no kernels here: run ci/kernels first")
    found = {name: str(index.parent / path) for name, path in known.items()}
    return {**found, "pvh32-module": found["linux-6.1-cloud"]}


def _listed(index: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in index.read_text().splitlines())


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


def short(cmdline: str) -> str:
    """``cmdline`` with what kernels leave out here."""
    return f"{cmdline} {_GUEST_CMDLINE}".rstrip()


def command(
    vm: vmlet.VM, line: str, timeout: float = 20, meanwhile: Callable[[], None] | None = None
) -> str:
    """What ``line`` prints in the shell of ``vm``; ``meanwhile`` is called while it runs."""
    vm.console.write(f"echo begin-$((1+1)); {line}; echo end-$((1+1))\n")
    vm.console.expect("begin-2\r\n", timeout=limit(timeout))
    if meanwhile is not None:
        meanwhile()
    said = vm.console.expect(re.compile(rb"\A(.*?)end-2\r\n", re.DOTALL), timeout=limit(timeout))
    return said[1].decode().replace("\r", "").strip()


def until(reached: Callable[[], bool], seconds: float = 60) -> None:
    """Waits for a state that the guest brings about by itself."""
    deadline = time.monotonic() + limit(seconds)
    while not reached():
        assert time.monotonic() < deadline, "the guest does not get there"
        time.sleep(0.02)


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., vmlet.VM]]:
    """Makes VMs that are closed at the end of the test; on the engine that the test runs on."""
    made: list[vmlet.VM] = []
    if "engine" in request.fixturenames:
        engine = request.getfixturevalue("engine")
    elif any(request.node.get_closest_marker(name) for name in ("kvm", "kvm_linux")):
        engine = "kvm"
    else:
        engine = default_engine()

    def make(**settings: object) -> vmlet.VM:
        settings = {"engine": engine, **settings}
        if _GUEST_CMDLINE and "kernel" in settings and "cmdline" not in settings:
            settings["cmdline"] = short(vmlet.default_cmdline(str(settings["engine"])))
        vm = vmlet.VM(**settings)  # type: ignore[arg-type]
        made.append(vm)
        return vm

    yield make
    for vm in made:
        vm.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    """A VM for each engine that tests of a module share: made by the first that asks for it, closed
    at the end."""
    made: dict[Engine, vmlet.VM] = {}

    def find(engine: Engine, make: Callable[[], vmlet.VM]) -> vmlet.VM:
        if engine not in made:
            made[engine] = make()
        return made[engine]

    yield find
    for vm in made.values():
        vm.close()


def default_engine() -> Literal["kvm", "soft"]:
    """The engine of a test that names none: what users get, without the words about it."""
    return "kvm" if _missing("kvm-linux") is None else "soft"
