"""What a job costs from its acceptance to its line in the ledger: Penstock's queue lane beside FastAPI and Celery.

``make bench`` runs it. Both run at once with services of their own before one model server, and get the same jobs in
turns. CPU time is that of every process on the job's path, from the first request until the last job's result and
charge are in PostgreSQL, so that what is left for later is counted. ``queue_systems`` says what both promise.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import peers, queue_systems
from benchmarks.cpu import RESULTS, machine
from benchmarks.load import checked, send
from benchmarks.processes import cpu_s
from benchmarks.queue_systems import QueueSystem
from penstock import __version__

CONNECTIONS = 16
TOKENS = 16
WARM_UP = 100
DONE_S = 120.0
REST_S = 8.0
POLL_S = 0.1
GOAL = 5.0


@dataclass(frozen=True, slots=True)
class Round:
    """One system's turn: per second, and CPU milliseconds per job by part."""

    accepted_per_s: float
    done_per_s: float
    cpu_ms: dict[str, float]

    @property
    def total_ms(self) -> float:
        """Of all parts."""
        return sum(self.cpu_ms.values())


def turn(system: QueueSystem, jobs: int) -> Round:
    """Hand jobs in, and wait until all are done.

    Raises:
        SystemExit: One was refused, or they were not done in time.
    """
    done_before = system.done()
    before = {part: cpu_s(pid) for part, pid in system.pids.items()}
    began_s = time.monotonic()
    checked(asyncio.run(send(system.target, jobs, connections=CONNECTIONS)), events=0, status=202)
    accepted_s = time.monotonic() - began_s
    while system.done() < done_before + jobs:
        if time.monotonic() - began_s > DONE_S:
            raise SystemExit(f"{system.name}: {system.done() - done_before} of {jobs} done after {DONE_S:g} s")
        time.sleep(POLL_S)
    done_s = time.monotonic() - began_s
    used = {part: (cpu_s(pid) - before[part]) / jobs * 1000 for part, pid in system.pids.items()}
    return Round(jobs / accepted_s, jobs / done_s, used)


def at_rest(system: QueueSystem) -> float:
    """CPU milliseconds per second of all parts together, with nothing to do."""
    before = sum(map(cpu_s, system.pids.values()))
    time.sleep(REST_S)
    return (sum(map(cpu_s, system.pids.values())) - before) / REST_S * 1000


def measure(*, rounds: int, jobs: int) -> tuple[dict[str, list[Round]], dict[str, float]]:
    """Each system's rounds, in turns; and what each takes at rest."""
    with ExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-", dir="/var/tmp")))
        folder.chmod(0o711)  # the database's own account passes through
        parts.enter_context(peers.model_server(tokens=TOKENS).started(folder))
        systems = []
        for name, start in (("penstock", queue_systems.penstock), ("celery", queue_systems.celery)):
            own = folder / name
            own.mkdir(mode=0o711)
            print(f"starting {name}", flush=True)
            systems.append(parts.enter_context(start(own)))
        found: dict[str, list[Round]] = {system.name: [] for system in systems}
        for system in systems:
            turn(system, WARM_UP)
        idle = {system.name: at_rest(system) for system in systems}
        for number in range(rounds):
            for system in systems if number % 2 else reversed(systems):
                found[system.name].append(each := turn(system, jobs))
                print(
                    f"round {number + 1}/{rounds} {system.name}: {each.total_ms:.2f} ms of CPU a job, "
                    f"{each.done_per_s:.0f} jobs/s", flush=True,
                )  # fmt: skip
        return found, idle


def table(rounds: dict[str, list[Round]], idle: dict[str, float]) -> list[str]:
    """Medians as Markdown, and their ratio."""
    lines = ["| system | jobs per CPU second | accepted/s | completed/s | CPU ms a job | lowest to highest |"]
    lines += ["|---|--:|--:|--:|--:|--:|"]
    totals = {}
    for name, each in rounds.items():
        spent = [one.total_ms for one in each]
        totals[name] = statistics.median(spent)
        accepted, done = (median([getattr(one, rate) for one in each]) for rate in ("accepted_per_s", "done_per_s"))
        lines.append(
            f"| {name} | {1000 / totals[name]:,.0f} | {accepted:,.0f} | {done:,.0f} | {totals[name]:.2f} "
            f"| {min(spent):.2f} to {max(spent):.2f} |"
        )
    mine, other = totals.values()
    lines += ["", f"Penstock does {other / mine:.1f} times as many jobs per CPU second; the goal is {GOAL:g}.", ""]
    lines += ["| CPU ms a job, median | " + " | ".join(rounds) + " |", "|---|" + "--:|" * len(rounds)]
    every = {part.partition("-")[0]: None for each in rounds.values() for part in each[0].cpu_ms}
    for part in every:
        cells = [by_part(each, part) for each in rounds.values()]
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    resting = [f"{idle[name]:.0f}" for name in rounds]
    return [*lines, "", f"At rest {' and '.join(resting)} ms of CPU a second; it is in the figures above."]


def by_part(rounds: Sequence[Round], part: str) -> str:
    """The median of one part; nothing if there is none of it."""
    spent = [sum(ms for name, ms in each.cpu_ms.items() if name.partition("-")[0] == part) for each in rounds]
    return f"{median(spent):.2f}" if any(spent) else ""


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def versions() -> str:
    """Who was measured."""
    lock = (queue_systems.CELERY / "requirements.txt").read_text()
    found = dict(re.findall(r"^([a-z-]+)==(\S+)", lock, re.MULTILINE))
    return f"Penstock {__version__}, FastAPI {found['fastapi']}, uvicorn {found['uvicorn']}, Celery {found['celery']}"


def main() -> None:
    """Measure, print, and write results/queue_lane.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: 5)")
    parser.add_argument("--jobs", type=int, default=1500, help="jobs in a turn (default: 1500)")
    parser.add_argument("--output", type=Path, default=RESULTS / "queue_lane.md", help="file to write")
    options = parser.parse_args()
    found, idle = measure(rounds=options.rounds, jobs=options.jobs)
    lines = ["# A job from its acceptance to the ledger", "", f"Measured by `make bench`, {machine()}; medians of"]
    lines += [f"{options.rounds} rounds of {options.jobs} jobs each, in turns, {TOKENS} tokens an answer,"]
    lines += [f"{CONNECTIONS} connections, {queue_systems.CONCURRENCY} jobs at once.", "", versions() + ".", ""]
    lines += table(found, idle)
    options.output.write_text("\n".join(lines).rstrip() + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
