"""``vmlet doctor``: what this host offers, and which engine would run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import vmlet
from vmlet.host import Finding

if TYPE_CHECKING:
    from vmlet.cli.commands import Commands

_ABOUT = """\
Shows what this host offers to virtual machines, each "no" with its cause and a remedy, and the
engine that "auto" stands for. Exit status: 0 if it is KVM, 1 if it is the software CPU, which runs
everywhere, but slower."""
_WORDS = ("ok", "no", "warning", "unknown")


def add_parser(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser("doctor", help="what this host offers", description=_ABOUT)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(execute=execute)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The engine that would run, why, and what would give a faster one."""

    engine: str
    reason: str
    remedy: str | None = None


def execute(args: argparse.Namespace) -> int:
    """Asks the host and prints the answer."""
    findings, probe = vmlet.doctor(), vmlet.capabilities()
    verdict = judge(probe)
    if args.json:
        listed = [asdict(finding) for finding in findings]
        print(json.dumps({**asdict(verdict), "probe": probe, "findings": listed}, indent=2))
    else:
        models = render_models(probe["cpu_models"])
        print("\n".join([*render(findings), "", *models, "", *render_verdict(verdict)]))
    return 0 if verdict.engine == "kvm" else 1


def judge(probe: dict[str, Any]) -> Verdict:
    """Which engine would run, from what `vmlet.capabilities` found by running a guest."""
    detail = str(probe["detail"])
    if probe["runs_kernels"]:
        return Verdict("kvm", detail)
    kvm = "KVM runs small guests but no kernel" if probe["usable"] else "KVM cannot be used"
    return Verdict("soft", f"the software CPU, as {kvm}: {detail}", probe["remedy"])


def render(findings: Sequence[Finding]) -> list[str]:
    """The findings as an aligned table."""
    states = max(len(word) for word in _WORDS)
    topics = max((len(one.topic) for one in findings), default=0)
    lines = []
    for one in findings:
        lines.append(f"{one.state:<{states}}  {one.topic:<{topics}}  {one.detail}".rstrip())
        for key, text in (("cause", one.cause), ("remedy", one.remedy)):
            if text:
                lines.append(f"{'':<{states}}  {'':<{topics}}  {key}: {text}")
    return lines


def render_models(models: Mapping[str, Mapping[str, Mapping[str, Sequence[str]]]]) -> list[str]:
    """Which engine carries which CPU model, and why the others do not.

    >>> fits, lacks = {"missing": [], "unmasked": []}, {"missing": ["avx"], "unmasked": []}
    >>> render_models({"x86-64-v3": {"kvm": fits, "soft": lacks}})
    ['cpu x86-64-v3: kvm; soft lacks avx']
    """
    lines, ignoring = [], set()
    for engines in models.values():
        for name, found in engines.items():
            if found["unmasked"] and name not in ignoring:
                ignoring.add(name)
                shown = ", ".join(found["unmasked"])
                lines.append(f"cpu models: not on {name}, whose guests see the processor's {shown}")
    for model, engines in models.items():
        heeding = {name: found for name, found in engines.items() if name not in ignoring}
        fit = [name for name, found in heeding.items() if not found["missing"]]
        lacks = [
            f"{name} lacks {', '.join(found['missing'])}"
            for name, found in heeding.items()
            if found["missing"]
        ]
        lines.append(f"cpu {model}: {'; '.join([', '.join(fit) or 'no engine', *lacks])}")
    return lines


def render_verdict(verdict: Verdict) -> list[str]:
    """The last lines: what would run."""
    lines = [f"engine: {verdict.engine} ({verdict.reason})"]
    if verdict.remedy:
        lines.append(f"remedy: {verdict.remedy}")
    return lines
