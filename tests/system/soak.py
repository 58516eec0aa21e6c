"""Two hours of mixed load on a whole cluster with a fault a minute; then nothing may be lost, leaked or billed twice.

::

    start -> load, faults and samples together -> load stops -> jobs end -> stores fall still -> audit and comparisons

``python -m tests.system.soak --minutes 120 --seed 1`` ends with 0 if all held, and 1 if something did not; what it
measured is in a JSON report and on the screen either way. Ctrl-C and SIGTERM end everything that it started.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2 as httpx
import yaml

from penstock.wiring.places import Places
from penstock.wiring.rehearsing import read_ledger
from tests.system import soak_verdict as verdict
from tests.system.clusters import Cluster
from tests.system.deployments import ENDS
from tests.system.soak_faults import FROZEN_S, USUAL, Faults
from tests.system.soak_load import Load, Seen, within
from tests.system.soak_samples import UNKNOWN, Sampler, Samples

ENDED_S: Final = 1500.0
STILL_S: Final = 300.0
SHOWN_MAX: Final = 20
PAGE: Final = 100
ORGANISATIONS: Final = {
    "acme": ["1B tokens/day", "500 concurrent"],
    "other": ["1B tokens/day", "1k usd/month", "500 concurrent"],
    "north": ["60k tokens/minute", "90 requests/minute", "1B tokens/month"],
    "south": ["400k tokens/hour", "3 concurrent"],
}
"""By organisation: two that are never refused, one bound by rates, one by a budget and by what runs at once."""


class SoakCluster(Cluster):
    """The cluster of the tests with more organisations, and bounds on a model server that fell silent."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, *USUAL)
        file = folder / "penstock.yaml"
        described = yaml.safe_load(file.read_text())
        described["plans"] = {name: {"limits": limits} for name, limits in ORGANISATIONS.items()}
        described["organisations"] = {name: {"plan": name} for name in ORGANISATIONS}
        described["queue"] = {"deadline": "20m"}
        for model in described["models"].values():
            model["timeouts"] = {"first_byte": "20s", "between_chunks": "10s", "total": "120s"}
        file.write_text(yaml.safe_dump(described))


@dataclass(slots=True)
class Result:
    """One soak in figures. ``wrong`` is empty if every invariant held."""

    seed: int
    minutes: float
    began_at_ms: int
    seen: Seen = field(default_factory=Seen)
    samples: Samples = field(default_factory=Samples)
    faults: list[dict[str, object]] = field(default_factory=list)
    jobs: dict[str, int] = field(default_factory=dict)
    ledger: dict[str, int] = field(default_factory=dict)
    executed_again: int = 0
    ended_after_s: float = 0.0
    still_after_s: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """For programs."""
        kinds = sorted({kind for kind, _ in self.seen.outcomes})
        known = [each for each in self.samples.waiting if each.held != UNKNOWN]
        return {
            "seed": self.seed, "minutes": self.minutes, "began_at_ms": self.began_at_ms, "wrong": self.wrong,
            "requests": {kind: self.seen.sums(kind) for kind in kinds}, "jobs": self.jobs, "ledger_rows": self.ledger,
            "accepted": len(self.seen.jobs), "answers_seen_whole": self.seen.whole.total(),
            "executed_again": self.executed_again, "faults": self.faults,
            "ended_after_s": self.ended_after_s, "still_after_s": self.still_after_s,
            "waiting_most": {
                name: max((getattr(each, name) for each in known), default=0)
                for name in ("redis_mb", "queued", "outbox", "held")
            },
            "waiting_last": asdict(self.samples.waiting[-1]) if self.samples.waiting else None,
            "processes": {name: self.samples.summary(name) for name in self.samples.names},
        }  # fmt: skip


class Soak:
    """One run.

    Args:
        folder: Empty; for everything that it writes.
        pace: Requests begun per second.
        faults_max: Of faults, in all; None for one after the other until the load stops.
        frozen_s: How long at least and at most something stands still.
    """

    def __init__(
        self,
        folder: Path,
        *,
        minutes: float,
        seed: int,
        pace: float,
        every_s: float,
        faults_max: int | None = None,
        frozen_s: tuple[float, float] = FROZEN_S,
    ) -> None:
        draw = random.Random(seed)
        self.cluster = SoakCluster(folder)
        self._minutes, self._pace, self._every_s, self._faults_max = minutes, pace, every_s, faults_max
        self._load_draw, fault_draw = random.Random(draw.random()), random.Random(draw.random())
        self._faults = Faults(self.cluster, fault_draw, frozen_s=frozen_s)
        self._sampler = Sampler(self.cluster, folder / "samples.jsonl")
        self.result = Result(seed, minutes, time.time_ns() // 1_000_000)
        self.result.faults, self.result.samples = self._faults.told, self._sampler.taken

    async def run(self) -> Result:
        """Load, faults and samples; then what must hold. The cluster has been started, and is not stopped here."""
        over, measured = asyncio.Event(), asyncio.Event()
        load = Load(self.cluster.url, self.cluster.keys, self._load_draw, pace=self._pace)
        self.result.seen = load.seen
        async with asyncio.TaskGroup() as tasks:
            loading = tasks.create_task(load.run(over))
            faulting = tasks.create_task(self._faults.run(over, every_s=self._every_s, count_max=self._faults_max))
            tasks.create_task(self._sampler.run(measured))
            telling = tasks.create_task(self._tell_each_minute())
            await within(asyncio.Event(), self._minutes * 60)
            over.set()
            await asyncio.gather(loading, faulting)
            tell("the load has stopped; waiting for what was accepted")
            await self._settle_down()
            telling.cancel()
            measured.set()
        self.result.samples.flushed_at_s = self._faults.flushed_at_s(began_at_ms=self.result.began_at_ms)
        self.result.wrong += verdict.slopes_wrong(self.result.samples)
        return self.result

    async def _tell_each_minute(self) -> None:
        minute = 0
        while True:
            await within(asyncio.Event(), 60)
            minute += 1
            result, waiting = self.result, self._sampler.taken.waiting[-1]
            refused = sum(count for (_, outcome), count in result.seen.outcomes.items() if outcome in ("429", "503"))
            lost = sum(count for (_, outcome), count in result.seen.outcomes.items() if outcome.startswith("lost"))
            fault = result.faults[-1] if result.faults else {"fault": "none yet", "away_s": 0}
            tell(
                f"minute {minute}: {result.seen.outcomes.total()} requests, {result.seen.whole.total()} whole, "
                f"{refused} refused, {lost} cut off; {len(result.seen.jobs)} jobs; held {waiting.held}, queued "
                f"{waiting.queued}, outbox {waiting.outbox}, Redis {waiting.redis_mb} MB; last: {fault['fault']}, "
                f"{fault['away_s']} s"
            )

    async def _settle_down(self) -> None:
        result, began_s = self.result, time.monotonic()
        stored = await self._ended()
        result.ended_after_s = round(time.monotonic() - began_s, 1)
        if not await self._fell_still():
            result.wrong.append(f"not still after {STILL_S:g} s: {self._sampler.taken.waiting[-1]}")
        result.still_after_s = round(time.monotonic() - began_s, 1)
        report = json.loads(await asyncio.to_thread(self.cluster.command, "audit", "--json"))
        for each in report["organisations"]:
            if each["holds"] or each["unwritten"] or each["differences"]:
                result.wrong.append(f"audit of {each['organisation']}: {each['holds']} held, {each['differences']}")
        events = await asyncio.to_thread(self._events)
        produced = await asyncio.to_thread(self.cluster.model.produced)
        for event in events:
            result.ledger[event.kind.value] = result.ledger.get(event.kind.value, 0) + 1
        for job in result.seen.jobs:
            status = stored[job]["status"] if job in stored else "not there"
            result.jobs[status] = result.jobs.get(status, 0) + 1
        result.executed_again = verdict.executions_again(produced, result.seen.jobs)
        result.wrong += verdict.jobs_wrong(result.seen.jobs, stored)
        result.wrong += verdict.bills_wrong(events, stored)
        result.wrong += verdict.ledger_wrong(events, produced)
        result.wrong += verdict.answers_unbilled(result.seen, events)

    def _events(self) -> list[Any]:
        return list(read_ledger(self.cluster.configuration, Places(self.cluster.data)))

    async def _ended(self) -> dict[str, dict[str, Any]]:
        """Every job as its owner sees it, once all have ended, or after a while as they are then."""
        ends_at_s = time.monotonic() + ENDED_S
        while True:
            stored = {}
            for organisation in ORGANISATIONS:
                stored.update(await self._jobs_of(organisation))
            open_jobs = [job for job, shown in stored.items() if shown["status"] not in ENDS]
            open_jobs += (
                self.result.seen.jobs.keys() - stored.keys()
            )  # a keeper that was hit tells of them a little later
            if not open_jobs or time.monotonic() > ends_at_s:
                return stored
            tell(f"{len(open_jobs)} jobs have not ended yet")
            await within(asyncio.Event(), 5)

    async def _jobs_of(self, organisation: str) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        asked: dict[str, str] = {"limit": str(PAGE)}
        headers = {"authorization": f"Bearer {self.cluster.keys[organisation]}"}
        async with httpx.AsyncClient(base_url=self.cluster.url, headers=headers, timeout=60, trust_env=False) as client:
            while True:
                try:
                    answer = await client.get("/v1/jobs", params=asked)
                    answer.raise_for_status()
                except httpx.HTTPError:  # what the last fault hit comes back
                    await within(asyncio.Event(), 1)
                    continue
                page = answer.json()
                found.update({job["id"]: job for job in page["data"]})
                if not page["has_more"]:
                    return found
                asked["cursor"] = page["next_cursor"]

    async def _fell_still(self) -> bool:
        """Nothing held, nothing on its way to the ledger, nothing in a queue."""
        ends_at_s = time.monotonic() + STILL_S
        while time.monotonic() < ends_at_s:
            waiting = await self._sampler.look()
            if (waiting.held, waiting.outbox, waiting.queued) == (0, 0, 0):
                return True
            await within(asyncio.Event(), 2)
        return False


def tell(line: str) -> None:
    """A line of progress, at once."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stdout.flush()


def table(result: Result) -> Iterator[str]:
    """The report for people."""
    report = result.report()
    yield f"{'':<14}{'processes':>10}{'memory MB':>11}{'files':>7}{'threads':>9}{'CPU s':>9}{'MB/h':>16}{'files/h':>14}"
    for name, each in report["processes"].items():
        slopes = each["slopes"]
        steep = [
            f"{slopes[what]['per_hour']:.1f} ±{slopes[what]['error']:.1f}" if slopes[what]["lives"] else "-"
            for what in ("memory_mb", "files")
        ]
        yield (
            f"{name:<14}{each['processes']:>10}{each['memory_mb_max']:>11.1f}{each['files_max']:>7}"
            f"{each['threads_max']:>9}{each['cpu_s']:>9.1f}{steep[0]:>16}{steep[1]:>14}"
        )
    for kind, outcomes in report["requests"].items():
        yield f"{kind}: " + ", ".join(f"{outcome} {count}" for outcome, count in outcomes.items())
    yield f"jobs: {report['accepted']} accepted, {report['jobs']}; calls made again: {report['executed_again']}"
    yield f"ledger: {report['ledger_rows']}; answers seen whole: {report['answers_seen_whole']}"
    yield f"faults: {len(report['faults'])}; ended after {report['ended_after_s']} s, still {report['still_after_s']} s"
    yield f"most at a time: {report['waiting_most']}; at the end: {report['waiting_last']}"
    for each in result.wrong[:SHOWN_MAX]:
        yield f"WRONG: {each}"
    yield f"{len(result.wrong)} things are wrong" if result.wrong else "every invariant held"


@contextmanager
def started(cluster: Cluster) -> Iterator[None]:
    """Run a cluster; whatever happens, nothing of it is left."""
    try:
        cluster.start()
        yield
    finally:
        if cluster.process is not None:
            cluster.stop()
        elif cluster.model.process is not None:
            cluster.model.stop()


def soak(folder: Path, report: Path | None, **settings: Any) -> Result:
    """Run one, and write its report."""
    run = Soak(folder, **settings)
    tell(f"seed {run.result.seed}, {run.result.minutes:g} minutes; everything is in {folder}")
    with started(run.cluster):
        tell(f"the cluster is up: {', '.join(run.cluster.pids)}")
        result = asyncio.run(run.run())
    if report is not None:
        report.write_text(json.dumps(result.report(), indent=1) + "\n")
    for line in table(result):
        sys.stdout.write(line + "\n")
    return result


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=120, help="of load")
    parser.add_argument("--seed", type=int, default=None, help="of load and faults; drawn and told if not given")
    parser.add_argument("--pace", type=float, default=5.0, help="requests begun per second")
    parser.add_argument("--fault-every", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--report", type=Path, default=None, help="JSON file to write")
    parser.add_argument("--folder", type=Path, default=None, help="kept; a temporary one is kept if something is wrong")
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have told background jobs to ignore it
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    folder = given.folder or Path(tempfile.mkdtemp(prefix="penstock-soak-", dir="/var/tmp"))
    seed = secrets.randbits(32) if given.seed is None else given.seed
    try:
        result = soak(
            folder, given.report, minutes=given.minutes, seed=seed, pace=given.pace, every_s=given.fault_every
        )
    except KeyboardInterrupt:
        tell("stopped; nothing of it runs any more")
        return 130
    if given.folder is None and not result.wrong:
        shutil.rmtree(folder)
    return 1 if result.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
