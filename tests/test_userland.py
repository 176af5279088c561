"""Debian's own programs in a guest of the software CPU say what they say on the host.

The root is made of packages and is the same on both sides; on the host it is entered by a user
namespace, in the guest it is the initramfs. The jobs are in ``userland/jobs``.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import vmlet
from conftest import kernels, lacks, limit

pytestmark = pytest.mark.interpreted

HERE = Path(__file__).parent / "userland"
JOBS = sorted(path.name for path in (HERE / "jobs").glob("[a-z]*"))
#: Enters the root in $ROOT, with a temporary directory of its own, and runs a job.
ENTER = """
set -e
mount -t tmpfs none "$ROOT/tmp"
mount --bind "$JOBS" "$ROOT/jobs"
mount --bind "$KEYS" "$ROOT/etc/keys"
mount --rbind /dev "$ROOT/dev"
mount --rbind /proc "$ROOT/proc"
exec chroot "$ROOT" /jobs/.run "$1"
"""


@functools.cache
def root() -> Path:
    """The Debian root that ci/kernels has made."""
    found = kernels().get("userland")
    if found is None:
        lacks("userland", "no Debian root here: run ci/kernels first")
    return Path(found)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """New private keys: both sides sign with the same."""
    folder = tmp_path_factory.mktemp("keys")
    for kind in ("rsa", "ed25519"):
        command = ["openssl", "genpkey", "-quiet", "-algorithm", kind, "-out", folder / kind]
        subprocess.run(command, check=True)
    return folder


def on_host(job: str, keys: Path) -> tuple[str, int]:
    """What ``job`` prints on the host, and its status."""
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", ENTER, "sh", job],
        env=os.environ | {"ROOT": str(root()), "JOBS": str(HERE / "jobs"), "KEYS": str(keys)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
        timeout=limit(60),
    )
    return done.stdout, done.returncode


def initramfs(keys: Path) -> bytes:
    """The root with the jobs, the keys and what runs them."""
    files = {"init": (HERE / "init").read_bytes(), "bin/busybox": busybox()}
    for path in (HERE / "jobs").iterdir():
        files[f"jobs/{path.name}"] = path.read_bytes()
    for path in keys.iterdir():
        files[f"etc/keys/{path.name}"] = path.read_bytes()
    return vmlet.build_initramfs(root(), files=files)


def busybox() -> bytes:
    return Path(shutil.which("busybox") or "/bin/busybox").read_bytes()


ONE = pytest.param("linux-6.1-cloud", 1, "", id="one-after-another")
FOUR = pytest.param("linux-6.12-cloud", 4, "together", id="together-on-four-vcpus")


@pytest.mark.parametrize(
    ("kernel", "cpus", "words"),
    # The second takes minutes.
    [ONE, FOUR] if os.environ.get("VMLET_FULL_PRODUCT") else [ONE],
)
def test_debian_programs_print_in_a_guest_what_they_print_on_the_host(
    make: Callable[..., vmlet.VM], keys: Path, kernel: str, cpus: int, words: str
) -> None:
    vm = make(
        kernel=kernels()[kernel],
        initramfs=initramfs(keys),
        cmdline=f"{vmlet.default_cmdline('soft')} loglevel=0 {words}",
        cpus=cpus,
        memory="1G",
        engine="soft",
    )
    assert vm.run(timeout=limit(300)).kind == "poweroff"
    said = vm.console.read().decode().replace("\r\n", "\n")
    for job in JOBS:
        found = re.search(rf"^begin {job}\n(.*?)^end {job} (\d+)$", said, re.DOTALL | re.MULTILINE)
        assert found, f"{job} is missing in {said[-2000:]}"
        assert (found[1], int(found[2])) == on_host(job, keys), job
        assert found[2] == "0", found[1]
    for kind in ("CAL", "TLB") if cpus > 1 else ():
        counts = re.search(rf"^ *{kind}:((?: +\d+)+)", said, re.MULTILINE)
        assert counts
        assert len(counts[1].split()) == cpus
        assert sum(int(count) for count in counts[1].split()) > 0, kind
