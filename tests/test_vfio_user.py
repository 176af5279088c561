"""Devices of the host for a user without rights, to whom root has handed them over."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import edu
from conftest import kernels, limit
from ordinary_user import NOBODY, handed_over, readable
from test_vfio_guest import KERNEL
from vmlet import host

HERE = Path(__file__).parent
#: What is done again: by `vmlet.vfio`, and by guests on KVM and on the software CPU.
AGAIN = (
    "test_vfio.py::test_a_bar_is_read_and_written",
    "test_vfio.py::test_dma_goes_both_ways",
    "test_vfio.py::test_an_interrupt_is_awaited",
    "test_vfio_guest.py::test_registers_are_the_devices",
    "test_vfio_guest.py::test_dma_goes_both_ways_to_the_guests_own_addresses",
    "test_vfio_guest.py::test_a_message_interrupts_the_guest",
    "test_vfio_guest.py::test_the_line_interrupts_the_guest_again_and_again",
    "test_vfio_guest.py::test_debian_drives_it_and_lets_go_of_it_again_and_again",
)
#: Those of tiny guests run on two engines.
RUNS = 3 + 4 * 2 + 1

#: Runs tests as that user, once all is imported that an ordinary user may not read everywhere.
_AS_A_USER = f"""
import ctypes, importlib, os, pkgutil, sys
import pytest, vmlet
for module in pkgutil.walk_packages(vmlet.__path__, "vmlet."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
class Drop:
    def pytest_collection_finish(self, session):
        sys.modules["test_vfio_guest"].debian_root()
        os.setgroups([])
        os.setgid({NOBODY})
        os.setuid({NOBODY})
        # The kernel hides /proc/self of who changes its user, and tests look at it.
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
sys.exit(pytest.main(sys.argv[1:], plugins=[Drop()]))
"""


def unlimited() -> None:
    """Any amount of memory may be locked, as root's `ulimit -l` or PAM's limits.conf say."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY,) * 2)


def _list(found: dict[str, str]) -> str:
    return "".join(f"{name}={path}\n" for name, path in found.items())


@pytest.mark.kvm_linux
def test_a_user_who_was_given_group_and_kvm_does_all_that_root_does() -> None:
    with edu.bound() as address:
        group = host.pci_device(address).group
        assert group is not None
        with (
            handed_over(Path(f"/dev/vfio/{group.number}"), Path("/dev/kvm")),
            readable(kernels()[KERNEL]) as image,
        ):
            listed = image.with_name("kernels.txt")
            listed.write_text(_list({**kernels(), KERNEL: str(image)}))
            done = subprocess.run(
                [sys.executable, "-c", _AS_A_USER, "-q", "-x", *AGAIN],
                cwd=HERE,
                env={**os.environ, "VMLET_BOUND": address, "VMLET_KERNELS": str(listed)},
                preexec_fn=unlimited,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=limit(200),
            )
    assert done.returncode == 0, done.stdout
    assert re.search(rf"^{RUNS} passed in", done.stdout, re.MULTILINE), done.stdout
