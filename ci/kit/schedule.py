"""Steps of a run, and the order they go in: as many at once as the machine has processors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .outcome import Failure, Tally
from .process import CommandError, progress, spent, tail


class StepFailed(Exception):
    """A step found something wrong; its log says what."""


class MachineEnded(StepFailed):
    """The emulated machine ended or stood still before its tests were done."""


class StepSkipped(Exception):
    """A step cannot run here; the text says why."""


@dataclass
class Report:
    """What a step tells: counts by (group, place), failed tests, and a remark for its line."""

    tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    #: How tests failed first that passed when they ran once more.
    unsteady: list[Failure] = field(default_factory=list)
    remark: str = ""

    def count(self, groups: dict[str, Tally], place: str) -> None:
        """Add the groups that ran in `place`."""
        for group, tally in groups.items():
            self.tallies.setdefault((group, place), Tally()).add(tally)


@dataclass(frozen=True)
class Step:
    """A part of the run.

    `after` names steps whose success it needs; of the steps that share a name in `holds`, one
    runs at a time. A step that `counts` tests and counts none has found something wrong. A `full`
    one takes long, and runs only where it is asked for.
    """

    name: str
    work: Callable[[Path, Report], None]
    after: tuple[str, ...] = ()
    holds: tuple[str, ...] = ()
    counts: bool = False
    full: bool = False


@dataclass
class Done:
    """A step that is over."""

    step: Step
    state: str  # "ok", "FAILED", "skipped" or "not run"
    seconds: float
    report: Report
    detail: str = ""
    processor: float = 0
    """Processor seconds of what it ran."""


class Schedule:
    """Runs steps in threads; a step starts when what it needs is done and free."""

    def __init__(self, steps: Sequence[Step], logs: Path, lanes: int) -> None:
        """Prepare `steps`, of which those early in the list go first."""
        self._waiting = list(steps)
        self._names = {step.name for step in steps}
        self._running: list[Step] = []
        self._done: dict[str, Done] = {}
        self._change = threading.Condition()
        self._logs = logs
        self._lanes = lanes

    def run(self) -> list[Done]:
        """Run everything; what could not run is in the result too."""
        with self._change:
            while self._waiting or self._running:
                step = self._next()
                if step is None:
                    if self._running:
                        self._change.wait()
                    continue
                self._waiting.remove(step)
                self._running.append(step)
                threading.Thread(target=self._carry_out, args=(step,), daemon=True).start()
        return list(self._done.values())

    def _next(self) -> Step | None:
        self._give_up()
        if len(self._running) >= self._lanes:
            return None
        held = {name for step in self._running for name in step.holds}
        for step in self._waiting:
            ready = all(need in self._done or need not in self._names for need in step.after)
            if ready and held.isdisjoint(step.holds):
                return step
        return None

    def _give_up(self) -> None:
        """Steps that wait for one that failed, and those that wait for them in turn."""
        lost = {name for name, done in self._done.items() if done.state in ("FAILED", "not run")}
        for step in list(self._waiting):
            needs = [need for need in step.after if need in lost]
            if needs:
                self._waiting.remove(step)
                self._finish(Done(step, "not run", 0, Report(), f"{needs[0]} did not succeed"))
                self._give_up()
                return

    def _carry_out(self, step: Step) -> None:
        begin, report = time.monotonic(), Report()
        log = self._logs / f"{step.name.replace(' ', '-')}.log"
        log.write_bytes(b"")
        progress(f"test: {step.name} begins")
        state, detail = "ok", ""
        try:
            step.work(log, report)
            if step.counts and not any(t.ran() for t in report.tallies.values()):
                raise StepFailed("it counts tests, and no test ran")
        except StepSkipped as error:
            state, detail = "skipped", str(error)
        except (StepFailed, CommandError) as error:
            state, detail = "FAILED", f"{error}\n{tail(log, 60)}"
        except Exception as error:  # a defect of the step itself must not end the others
            state, detail = "FAILED", f"{type(error).__name__}: {error}\n{tail(log)}"
        with self._change:
            self._running.remove(step)
            seconds = time.monotonic() - begin
            self._finish(Done(step, state, seconds, report, detail, spent()))
            self._change.notify()

    def _finish(self, done: Done) -> None:
        self._done[done.step.name] = done
        word = done.state if not done.report.remark else f"{done.state}: {done.report.remark}"
        progress(f"test: {done.step.name} {word} ({done.seconds:.0f} s)")
        if done.detail:
            progress(f"{done.detail}\n-- end of {done.step.name}")
