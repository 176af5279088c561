"""`ci/bench NAME [--json]`: runs one benchmark.

Here or in the lab: where it says that it needs real KVM for Linux, where this host's KVM is no use,
where it names a machine of the lab, or with `--lab`.  What the lab cannot make, compiled programs
and images, is made here beforehand.
"""

from __future__ import annotations

import argparse
import subprocess
from types import ModuleType

from .. import build, place
from ..paths import LOGS, REPOSITORY
from ..process import CommandError, Words, progress
from . import (
    block,
    boot_kvm,
    boot_soft,
    callback,
    create,
    density,
    exit,
    mips,
    native,
    net,
    vfio,
    vsock,
)
from .host import describe
from .result import Result, to_json, to_table

BENCHES = {
    "block": block,
    "boot-kvm": boot_kvm,
    "boot-soft": boot_soft,
    "callback": callback,
    "create": create,
    "density": density,
    "exit": exit,
    "mips": mips,
    "native": native,
    "net": net,
    "vfio": vfio,
    "vsock": vsock,
}

_LAB_SECONDS = 1800
#: All that the emulator has, so that figures stay comparable.
_CPU = ("--qemu", "-cpu max")


def main(arguments: list[str]) -> int:
    """Build, run, print; the last line of `--json` is the object."""
    parser = argparse.ArgumentParser(prog="ci/bench", description=__doc__)
    parser.add_argument("name", choices=sorted(BENCHES), help="the benchmark")
    parser.add_argument("--json", action="store_true", help="end with the result as JSON")
    parser.add_argument("--lab", action="store_true", help=f"run it in ci/lab {place.LAB}")
    parser.add_argument(
        "--prepare", action="store_true", help="make what `ci/lab amd -- ci/bench NAME` takes"
    )
    options = parser.parse_args(arguments)
    bench = BENCHES[options.name]
    if place.in_lab():
        check(options.name, bench)
    else:
        LOGS.mkdir(parents=True, exist_ok=True)
        build.ensure()
        bench.prepare()
        if options.prepare:
            return 0
        if options.lab or _wants_lab(bench):
            return _in_lab(options.name, bench, json=options.json)
    rows = bench.run(lambda text: progress(f"bench: {text}"))
    result = Result(options.name, bench.ENGINE, describe(), rows)
    print("\n".join(to_table(result)), flush=True)
    if options.json:
        print(to_json(result), flush=True)
    return 0


def check(name: str, bench: ModuleType) -> None:
    """Fail when something that only a host makes is not there."""
    missing = [str(path) for path in bench.needed() if not path.exists()]
    if missing:
        raise CommandError(
            f"missing: {', '.join(missing)}; on the host, `ci/bench {name} --prepare` makes that, "
            f"and `ci/bench {name} --lab` does both"
        )


def _lab(bench: ModuleType) -> str:
    """The machine of the lab that has what it measures, an attribute LAB where it is another."""
    return str(getattr(bench, "LAB", place.LAB))


def _wants_lab(bench: ModuleType) -> bool:
    if hasattr(bench, "LAB"):
        return True
    if not bench.NEEDS:
        return False
    host = place.probe()
    serves = host.runs_kernels if bench.NEEDS == "kvm-linux" else host.usable
    if not serves:
        progress(f"bench: in ci/lab {place.LAB}, as this host's KVM is no use: {host.detail}")
    return not serves


def _in_lab(name: str, bench: ModuleType, *, json: bool) -> int:
    kernel = getattr(bench, "LAB_KERNEL", "")  # what the machine's kernel is told for it
    options = (*_CPU, *(("--append", kernel) if kernel else ()))
    lab: Words = [REPOSITORY / "ci" / "lab", _lab(bench), "--timeout", str(_LAB_SECONDS), *options]
    command: Words = ["python", "-B", "ci/kit", "bench", name, *(["--json"] if json else [])]
    return subprocess.run([*lab, "--", *command], check=False, cwd=REPOSITORY).returncode
