"""``vmlet doctor``: what this host offers, and which engine would run."""

from __future__ import annotations

import argparse
import importlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vmlet.errors import UnsupportedError

if TYPE_CHECKING:
    from vmlet.cli.commands import Commands

_ABOUT = """\
Shows what this host offers to virtual machines, each "no" with its cause and a remedy, and the
engine that would run. Exit status: 0 if an engine can run Linux here, 1 if none can."""
_WORDS = ("ok", "no", "warning", "unknown")


def add_parser(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser("doctor", help="what this host offers", description=_ABOUT)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(execute=execute)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The engine that would run, if any, and why."""

    engine: str | None
    reason: str
    remedy: str | None = None


def execute(args: argparse.Namespace) -> int:
    """Asks the host and prints the answer."""
    findings, probe = _ask()
    verdict = judge(probe)
    if args.json:
        answer = {"findings": findings, "kvm": probe, **asdict(verdict)}
        print(json.dumps(answer, indent=2))
    else:
        print("\n".join([*render(findings), "", *render_verdict(verdict)]))
    return 0 if verdict.engine else 1


def _ask() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    try:
        core = importlib.import_module("vmlet._core")
    except ImportError as error:
        raise UnsupportedError(
            f"the compiled part of vmlet cannot be loaded: {error}",
            remedy="Install the wheel for this machine: pip install --force-reinstall vmlet.",
        ) from error
    return json.loads(core.host_findings()), json.loads(core.kvm_probe())


def judge(probe: dict[str, Any]) -> Verdict:
    """What the KVM probe means: it ran a guest and says how supervisor code runs."""
    mode = probe.get("kernel_mode")
    if mode == "native":
        return Verdict("kvm", "KVM runs a kernel's code on the processor")
    if mode == "interpreted":
        found = probe.get("bytes") or "an instruction"
        return Verdict(
            None,
            f"this KVM interprets a kernel's code and gave up at {found}",
            "Use a host with VT-x or SVM, or a virtual machine with nested virtualization.",
        )
    reason = probe.get("error") or probe.get("detail") or "the probe of KVM gave no answer"
    return Verdict(None, f"KVM cannot be used: {reason}", probe.get("remedy"))


def render(findings: list[dict[str, Any]]) -> list[str]:
    """The findings as an aligned table."""
    states = max((len(word) for word in _WORDS), default=0)
    topics = max((len(str(one["topic"])) for one in findings), default=0)
    lines = []
    for one in findings:
        lines.append(
            f"{one['state']:<{states}}  {one['topic']:<{topics}}  {one['detail']}".rstrip()
        )
        for key in ("cause", "remedy"):
            if one.get(key):
                lines.append(f"{'':<{states}}  {'':<{topics}}  {key}: {one[key]}")
    return lines


def render_verdict(verdict: Verdict) -> list[str]:
    """The last lines: what would run."""
    name = verdict.engine or "none"
    lines = [f"engine: {name} ({verdict.reason})"]
    if verdict.remedy:
        lines.append(f"remedy: {verdict.remedy}")
    return lines
