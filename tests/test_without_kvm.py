"""A host whose /dev/kvm is missing, not ours, or no KVM: each with its errno and its own remedy."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from conftest import lacks, limit

# What the child does before it makes a VM; libc is there for what Python has no name for.
CASES = {
    "missing": ('hide("tmpfs", b"/dev", b"tmpfs", 0)', "HostError", 2, "kvm_intel or kvm_amd"),
    "no KVM": ('hide("/dev/null", b"/dev/kvm", None, 4096)', "UnsupportedError", None, "software"),
    "not ours": ("os.setgroups([]); os.setgid(65534); os.setuid(65534)", "HostError", 13, "group"),
}
SCRIPT = """
import ctypes, os
import vmlet
libc = ctypes.CDLL(None, use_errno=True)

def hide(source, target, kind, flags):
    # A mount namespace of our own (CLONE_NEWNS) that gives nothing back (MS_REC | MS_PRIVATE).
    assert libc.unshare(0x20000) == 0
    assert libc.mount(None, b"/", None, ctypes.c_ulong(0x44000), None) == 0
    assert libc.mount(source.encode(), target, kind, ctypes.c_ulong(flags), None) == 0

{prepare}
kernel = b"\\x7fELF"
try:
    vmlet.VM(kernel=kernel, engine="kvm")
except vmlet.Error as error:
    print(type(error).__name__, getattr(error, "errno", None), error.remedy)
assert not vmlet.capabilities()["usable"] or vmlet.capabilities()["engine"] != "kvm"
assert vmlet.doctor()
"""


@pytest.mark.kvm
@pytest.mark.parametrize("case", CASES)
def test_a_host_without_kvm_says_what_helps(case: str) -> None:
    if os.geteuid() != 0:
        lacks("root", "only root can hide a device from a child")
    prepare, kind, errno, remedy = CASES[case]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(prepare=prepare)],
        capture_output=True,
        text=True,
        timeout=limit(30),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    name, number, said = done.stdout.split(maxsplit=2)
    assert (name, number) == (kind, str(errno))
    assert remedy in said
