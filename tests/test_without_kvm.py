"""A host whose /dev/kvm is missing, not ours, or no KVM.

Asked for by its name, KVM is refused, each time with its errno and its own remedy; "auto" takes the
software CPU, says so once, and boots Linux on it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import initramfs, kernels, lacks, limit
from guests import guest

# What the child does before it makes a VM; libc is there for what Python has no name for.
HIDE = 'hide("tmpfs", b"/dev", b"tmpfs", 0)'
CASES = {
    "missing": (HIDE, "HostError", 2, "kvm_intel or kvm_amd"),
    "no KVM": ('hide("/dev/null", b"/dev/kvm", None, 4096)', "UnsupportedError", None, "software"),
    "not ours": ("os.setgroups([]); os.setgid(65534); os.setuid(65534)", "HostError", 13, "group"),
}
BEGIN = """
import ctypes, os, re, resource, sys
import vmlet
# What is imported when it is first used: not by a user who may read nothing here.
import logging, vmlet.host
libc = ctypes.CDLL(None, use_errno=True)
kernel = open(sys.argv[1], "rb").read()

def hide(source, target, kind, flags):
    # A mount namespace of our own (CLONE_NEWNS) that gives nothing back (MS_REC | MS_PRIVATE).
    assert libc.unshare(0x20000) == 0
    assert libc.mount(None, b"/", None, ctypes.c_ulong(0x44000), None) == 0
    assert libc.mount(source.encode(), target, kind, ctypes.c_ulong(flags), None) == 0

"""
REFUSED = """
try:
    vmlet.VM(kernel=kernel, engine="kvm")
except vmlet.Error as error:
    print(type(error).__name__, getattr(error, "errno", None), error.remedy)
assert not vmlet.capabilities()["usable"] or vmlet.capabilities()["engine"] != "kvm"
assert vmlet.doctor()
"""
CHOSEN = """
for _ in range(2):
    with vmlet.VM(kernel=kernel, memory="4M") as vm:
        print(vm.engine, vm.run(timeout=20).kind, vm.console.read().decode())
"""
SHORT = """
probe = os.open("/dev/null", os.O_RDONLY)
os.close(probe)
resource.setrlimit(resource.RLIMIT_NOFILE, (probe, probe))
try:
    vmlet.VM(kernel=kernel, memory="4M")
except vmlet.HostError as error:
    print(error.errno, error.remedy)
"""
BOOTED = """
with vmlet.VM(kernel=kernel, initramfs=sys.argv[2]) as vm:
    vm.start()
    limit = float(sys.argv[3])
    vm.console.expect("# ", timeout=limit)
    vm.console.write("uname -r\\n")
    version = vm.console.expect(re.compile(rb"\\n(6\\.1\\.[^\\r]*)"), timeout=limit)[1]
    vm.console.write("poweroff -f\\n")
    print(vm.engine, vm.wait(timeout=limit).kind, version.decode())
"""


def child(body: str, image: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a process that runs ``body`` said."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + body, image, *arguments],
        capture_output=True,
        text=True,
        timeout=limit(90),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A guest that says "hi" and powers off, where everybody can read it."""
    kernel = tmp_path / "guest"
    kernel.write_bytes(guest("putc 'h'; putc 'i'; poweroff; spin"))
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    return kernel


def needs_root() -> None:
    if os.geteuid() != 0:
        lacks("root", "only root can hide a device from a child")


@pytest.mark.kvm
@pytest.mark.parametrize("case", CASES)
def test_a_host_without_kvm_says_what_helps(case: str, image: Path) -> None:
    needs_root()
    prepare, kind, errno, remedy = CASES[case]
    name, number, said = child(f"{prepare}\n{REFUSED}", image).stdout.split(maxsplit=2)
    assert (name, number) == (kind, str(errno))
    assert remedy in said


@pytest.mark.kvm
@pytest.mark.parametrize("case", CASES)
def test_auto_takes_the_software_cpu_there_and_says_so_once(case: str, image: Path) -> None:
    needs_root()
    prepare, _, _, remedy = CASES[case]
    done = child(f"{prepare}\n{CHOSEN}", image)
    assert done.stdout == "soft poweroff hi\n" * 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("VMs run on the software CPU")
    assert remedy in done.stderr
    assert 'engine="soft"' in done.stderr


@pytest.mark.kvm
def test_a_shortage_of_descriptors_is_no_reason_for_the_software_cpu(image: Path) -> None:
    assert child(SHORT, image).stdout.startswith("24 Raise the limit of open files")


@pytest.mark.interpreted
def test_debian_boots_with_kvm_hidden(tmp_path: Path) -> None:
    needs_root()
    (tmp_path / "initrd").write_bytes(initramfs())
    kernel = Path(kernels()["linux-6.1-cloud"])
    said = child(f"{HIDE}\n{BOOTED}", kernel, str(tmp_path / "initrd"), str(limit(30))).stdout
    assert said.startswith("soft poweroff 6.1.")


def test_doctor_names_the_engine_that_auto_takes(image: Path) -> None:
    found = child("print(vmlet.VM(kernel=kernel, memory='4M').engine, flush=True)", image)
    taken = found.stdout.strip()
    for options in ([], ["--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "vmlet.cli", "doctor", *options],
            capture_output=True,
            text=True,
            timeout=limit(30),
            check=False,
        )
        assert done.returncode == (0 if taken == "kvm" else 1), done.stderr
        if options:
            answer = json.loads(done.stdout)
            assert answer["engine"] == taken
            assert answer["reason"]
            assert (answer["remedy"] is None) == (taken == "kvm")
        else:
            assert f"\nengine: {taken} (" in done.stdout
