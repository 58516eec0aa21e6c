"""A fire drill: real services and a real Prometheus, one fault after the other, and the right alert each time.

::

    quiet -> broken -> the alert fires, and no other but those it implies -> mended -> quiet

``python -m tests.system.drill`` ends with 0 if every fault was noticed so, and 1 if not; ``--only`` takes parts of
faults' names. Time passes 600 times faster for the rules: see ``tests.system.drill_clock``.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.system.drill_faults import FAULTS, Fault
from tests.system.drill_scene import DrillCluster, Load, Scene
from tests.system.drill_watch import Alert, Prometheus, targets
from tests.system.soak import started, tell

FACTOR: Final = 600.0
QUIET_S: Final = 4.0
FIRES_S: Final = 120.0
ENDS_S: Final = 240.0
LOOK_S: Final = 0.5


@dataclass(slots=True)
class Outcome:
    """What became of one fault. ``wrong`` is empty if all was as declared."""

    fault: Fault
    fired_after_s: float | None = None
    ended_after_s: float | None = None
    others: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)


def is_expected(alert: Alert, fault: Fault) -> bool:
    """Whether this is the alert that the fault must raise."""
    return alert.is_firing and alert.name == fault.fires and fault.labels.items() <= dict(alert.labels).items()


def unexpected(fired: Iterable[str], fault: Fault) -> list[str]:
    """Alerts that the fault does not declare."""
    return sorted(set(fired) - fault.implies - {fault.fires})


class Drill:
    """Carries out faults on a cluster that is watched."""

    def __init__(self, scene: Scene, prometheus: Prometheus) -> None:
        self._scene = scene
        self._prometheus = prometheus

    def run(self, faults: Sequence[Fault]) -> Iterator[Outcome]:
        """One after the other."""
        for fault in faults:
            yield self._carry_out(fault)

    def _carry_out(self, fault: Fault) -> Outcome:
        outcome = Outcome(fault)
        self._until_quiet(outcome, "before")
        began_s = time.monotonic()
        with fault.how(self._scene):
            fired = self._watched(outcome, FIRES_S, lambda alerts: any(is_expected(each, fault) for each in alerts))
            if fired:
                outcome.fired_after_s = time.monotonic() - began_s
            else:
                outcome.wrong.append(f"{fault.fires} did not fire within {FIRES_S:g} s")
        began_s = time.monotonic()
        if self._until_quiet(outcome, "after"):
            outcome.ended_after_s = time.monotonic() - began_s
        outcome.wrong += [f"{name} fired, and is not implied" for name in unexpected(outcome.others, fault)]
        return outcome

    def _until_quiet(self, outcome: Outcome, when: str) -> bool:
        since_s = time.monotonic()

        def is_quiet(alerts: list[Alert]) -> bool:
            nonlocal since_s
            if any(alert.is_firing for alert in alerts):
                since_s = time.monotonic()
            return time.monotonic() - since_s > QUIET_S

        quiet = self._watched(outcome, ENDS_S, is_quiet)
        if not quiet:
            left = sorted({f"{each.name} {dict(each.labels)}" for each in self._prometheus.alerts() if each.is_firing})
            outcome.wrong.append(f"not quiet {when} it within {ENDS_S:g} s: {left}")
        return quiet

    def _watched(self, outcome: Outcome, bound_s: float, holds: Callable[[list[Alert]], bool]) -> bool:
        ends_at_s = time.monotonic() + bound_s
        while time.monotonic() < ends_at_s:
            alerts = self._prometheus.alerts()
            outcome.others |= {alert.name for alert in alerts if alert.is_firing}
            if holds(alerts):
                return True
            time.sleep(LOOK_S)
        return False


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """For people."""
    width = max(len(each.fault.what) for each in outcomes) + 2
    yield f"{'fault':<{width}}{'alert':<32}{'after s':>8}{'quiet s':>9}  with it"
    for each in outcomes:
        times = [f"{value:.0f}" if value is not None else "-" for value in (each.fired_after_s, each.ended_after_s)]
        others = ", ".join(sorted(name.removeprefix("Penstock") for name in each.others - {each.fault.fires}))
        yield f"{each.fault.what:<{width}}{each.fault.fires:<32}{times[0]:>8}{times[1]:>9}  {others or '-'}"
        for wrong in each.wrong:
            yield f"    WRONG: {wrong}"


@contextmanager
def watched(folder: Path, factor: float) -> Iterator[Drill]:
    """A cluster under load and a Prometheus that sees all of it; whatever happens, nothing of them is left."""
    cluster = DrillCluster(folder / "cluster")
    with started(cluster):
        load = Load(cluster)
        prometheus = Prometheus(folder, targets(cluster), factor=factor)
        load.start()
        try:
            prometheus.start()
            tell(f"a cluster and its Prometheus are up; time passes {factor:g} times faster for the rules")
            yield Drill(Scene(cluster, load), prometheus)
        finally:
            load.stop()
            prometheus.stop()


def drill(folder: Path, faults: Sequence[Fault]) -> list[Outcome]:
    """Carry out faults, and tell of each."""
    outcomes = []
    with watched(folder, FACTOR) as running:
        for outcome in running.run(faults):
            outcomes.append(outcome)
            tell(f"{outcome.fault.what}: {'; '.join(outcome.wrong) or 'noticed, and quiet again'}")
    return outcomes


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.drill", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", default=[], metavar="PART", help="of a fault's or an alert's name")
    parser.add_argument("--folder", type=Path, default=None, help="kept; a temporary one is kept if something is wrong")
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    faults = [
        fault for fault in FAULTS if not given.only or any(part in fault.what + fault.fires for part in given.only)
    ]
    if not faults:
        parser.error(f"no fault is called so; there are: {'; '.join(fault.what for fault in FAULTS)}")
    folder = given.folder or Path(tempfile.mkdtemp(prefix="penstock-drill-", dir="/var/tmp"))
    try:
        outcomes = drill(folder, faults)
    except KeyboardInterrupt:
        tell("stopped; nothing of it runs any more")
        return 130
    for line in table(outcomes):
        sys.stdout.write(line + "\n")
    wrong = sum(bool(each.wrong) for each in outcomes)
    tell(f"{len(outcomes) - wrong} of {len(outcomes)} faults were noticed as declared")
    if given.folder is None and not wrong:
        shutil.rmtree(folder)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
