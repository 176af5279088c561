"""`ci/test`: every check and every test, here and in the lab."""

from __future__ import annotations

import argparse
import os
import time

from . import report
from .paths import LOGS
from .process import progress
from .schedule import Schedule, Step
from .steps_python import PYTHON
from .steps_rust import RUST
from .steps_static import STATIC
from .steps_wheel import WHEEL
from .tools import ensure

_LABS = ("amd", "vtd", "nvme", "iommufd", "viommu", "amdvi", "intel")
PLACES = ("host", *(f"lab {name}" for name in _LABS))


def steps() -> list[Step]:
    """All steps. What others wait for goes first, then what takes longest.

    The lab's machine that most tests are in is busy from the start; what the other processor has
    to do is about as long.
    """
    found = {step.name: step for step in (*RUST, *WHEEL, *PYTHON, *STATIC)}
    first = ["wheel", "kernels", "lab itself", "python tests in the lab"]
    first += [name for name in found if name.startswith("python tests with devices passed on")]
    first += ["python tests with NVMe", "rust tests"]
    first += [name for name in found if name.startswith("tiny guests on")]
    first += ["tiny guests in the lab", "demo", "python tests with Linux", "python tests"]
    return [*(found.pop(name) for name in first), *found.values()]


def main(arguments: list[str]) -> int:
    """Run the steps and print the table."""
    parser = argparse.ArgumentParser(prog="ci/test", description=__doc__)
    parser.add_argument("--list", action="store_true", help="name the steps and run none")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="run these and what they need")
    parser.add_argument("--full", action="store_true", help="run the steps that take long too")
    parser.add_argument("--lanes", type=int, default=os.cpu_count() or 1, metavar="N")
    options = parser.parse_args(arguments)
    chosen = steps()
    if options.list:
        print("\n".join(f"{step.name}{' (--full)' if step.full else ''}" for step in chosen))
        return 0
    if options.only:
        unknown = sorted(set(options.only) - {step.name for step in chosen})
        if unknown:
            parser.error(f"no step {', '.join(unknown)}; see --list")
        chosen = with_needs(chosen, options.only)
    elif not options.full:
        chosen = [step for step in chosen if not step.full]
    LOGS.mkdir(parents=True, exist_ok=True)
    ensure()
    begin = time.monotonic()
    done = Schedule(chosen, LOGS, max(1, options.lanes)).run()
    progress(f"test: {time.monotonic() - begin:.0f} s; the logs are in {LOGS}")
    whole = not options.only
    print("\n".join(report.lines(done, PLACES, whole=whole)), flush=True)
    return 1 if report.problems(done, whole=whole) else 0


def with_needs(every: list[Step], wanted: list[str]) -> list[Step]:
    """The wanted steps and those they wait for, in order."""
    needs = {step.name: step.after for step in every}
    kept: set[str] = set()
    open_names = list(wanted)
    while open_names:
        name = open_names.pop()
        if name not in kept:
            kept.add(name)
            open_names += needs[name]
    return [step for step in every if step.name in kept]
