"""`ci/bench NAME [--json]`: runs one benchmark."""

from __future__ import annotations

import argparse
import subprocess

from .. import build, place
from ..paths import LOGS, REPOSITORY
from ..process import Words, progress
from . import boot_soft, create, mips
from .host import describe
from .result import Result, to_json, to_table

BENCHES = {"boot-soft": boot_soft, "create": create, "mips": mips}


def main(arguments: list[str]) -> int:
    """Build, run, print; the last line of `--json` is the object."""
    parser = argparse.ArgumentParser(prog="ci/bench", description=__doc__)
    parser.add_argument("name", choices=sorted(BENCHES), help="the benchmark")
    parser.add_argument("--json", action="store_true", help="end with the result as JSON")
    options = parser.parse_args(arguments)
    bench = BENCHES[options.name]
    if not place.in_lab():
        LOGS.mkdir(parents=True, exist_ok=True)
        build.ensure()
        bench.prepare()
        host = place.probe() if bench.NEEDS_KVM else None
        if host is not None and not host.usable:
            progress(f"bench: in ci/lab {place.LAB}, as this host's KVM is no use: {host.detail}")
            lab: Words = [
                REPOSITORY / "ci" / "lab",
                place.LAB,
                "--",
                "python",
                "-B",
                "ci/kit",
                "bench",
            ]
            return subprocess.run([*lab, *arguments], check=False, cwd=REPOSITORY).returncode
    rows = bench.run(lambda text: progress(f"bench: {text}"))
    result = Result(options.name, bench.ENGINE, describe(), rows)
    print("\n".join(to_table(result)), flush=True)
    if options.json:
        print(to_json(result), flush=True)
    return 0
