"""Jobs handed to a cluster while its processes and services are killed, frozen, and killed between two writes."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import httpx2 as httpx

from penstock.adapters.postgresql.crash_points import CRASH_POINTS as KEEPER_POINTS
from penstock.lanes.executing import CRASH_POINTS as EXECUTOR_POINTS
from penstock.lanes.forwarding import CRASH_POINTS as API_POINTS
from penstock.quota.operations import Lane
from penstock.wiring.crash import VARIABLE
from tests.system.bento import ROOT, found_bento
from tests.system.clusters import ORGANISATION, Cluster, until
from tests.system.deployments import ENDS
from tests.system.dying_stream import POINTS as STREAM_POINTS
from tests.system.fault_proxy import FaultProxy
from tests.system.soak_faults import Fault, family
from tests.system.soak_verdict import bills_wrong, executions_again, ledger_wrong

FROZEN_S: Final = 3.0
SENDERS: Final = 8
PAUSE_S: Final = 0.2  # of each sender: about as many jobs as the executor has time for
DEADLINE_S: Final = 300
"""Of a job: what a gateway that died had reserved and not published is held for so long."""
PAGE: Final = 100
OURS: Final = ("api", "keeper", "executor", "gateway", "worker-m", "worker-n", "collector", "dead-letters")
SERVICES: Final = ("redis", "postgresql", "rabbitmq")
PROCESSES: Final = {"worker": "worker-m", "dead_letters": "dead-letters"}
POINTS: Final = {
    **dict.fromkeys(API_POINTS, "api"),
    **dict.fromkeys(KEEPER_POINTS, "keeper"),
    **dict.fromkeys(EXECUTOR_POINTS, "executor"),
    **{
        point: PROCESSES.get(stream, stream)
        for stream, points in STREAM_POINTS.items()
        if stream != "dead_letters"  # no job of this load becomes a dead letter
        for point in points
    },
}
"""By name of each point between two writes: the process that dies at it."""
AT_HAND: Final = 24
"""Jobs that both workers have taken from the broker: so many at most are run again when something dies."""


FAULTS: Final = (
    *(Fault("kill", name) for name in (*OURS, *SERVICES)),
    *(Fault("freeze", name) for name in (*OURS, *SERVICES)),
    *(Fault("crash", point) for point in POINTS),
)


class FaultyCluster(Cluster):
    """A cluster whose processes die at the point that ``crash`` names when they start."""

    def __init__(self, folder: Path, *model_options: str) -> None:
        self.crash = folder / "crash"
        bento = folder / "bento"
        environment = {VARIABLE: f"@{self.crash}", "PENSTOCK_BENTO": str(bento)}
        super().__init__(folder, *model_options, environment=environment, queue={"deadline": f"{DEADLINE_S}s"})
        bento.write_text(
            f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m tests.system.dying_stream {found_bento()} "$@"\n'
        )
        bento.chmod(bento.stat().st_mode | stat.S_IXUSR)

    def cause(self, fault: Fault) -> None:
        """Let it happen, and wait until it is over."""
        name = POINTS.get(fault.name, fault.name)
        until(lambda: name in self.pids)  # after what befell it before
        if fault.what == "kill":
            self.kill_one(name)
        elif fault.what == "freeze":
            self._freeze(name)
        else:
            self.crash.write_text(f"{fault.name}:2")
            self.kill_one(name)
            until(lambda: not self.crash.exists())

    def cause_by(self, fault: Fault, happen: Callable[[], object]) -> None:
        """Let a process die at a point that ``happen`` brings it to."""
        name = POINTS[fault.name]
        until(lambda: name in self.pids)
        self.crash.write_text(f"{fault.name}:1")
        self.kill_one(name)

        def has_died() -> bool:
            happen()
            return not self.crash.exists()

        until(has_died)

    def _freeze(self, name: str) -> None:
        frozen, ends_at = family(self.pids[name]), time.monotonic() + FROZEN_S
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in frozen:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            until(lambda: time.monotonic() > ends_at)

    def stored(self) -> dict[str, dict[str, Any]]:
        """Every job of ``acme`` as it is shown to its owner."""
        found: dict[str, dict[str, Any]] = {}
        asked = {"limit": str(PAGE)}
        with self.client() as client:
            while True:
                answer = client.get("/v1/jobs", params=asked)
                assert answer.status_code == 200, answer.text
                page = answer.json()
                found.update({job["id"]: job for job in page["data"]})
                if not page["has_more"]:
                    return found
                asked["cursor"] = page["next_cursor"]


class Senders:
    """Hand jobs in until they are told to stop; what is refused was not promised."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.accepted: list[str] = []
        self.refused = 0
        self._pool = ThreadPoolExecutor(SENDERS)
        self._sending = [self._pool.submit(self._send, number) for number in range(SENDERS)]

    def _send(self, number: int) -> None:
        client = self._cluster.client()
        while not self._stop.is_set():
            try:
                job = self._cluster.submit(client, simulate="tokens=5", model="mn"[number % 4 == 0])
            except (AssertionError, httpx.TransportError):
                client.close()
                client = self._cluster.client()
                with self._lock:
                    self.refused += 1
                self._stop.wait(0.2)
                continue
            with self._lock:
                self.accepted.append(job)
            self._stop.wait(PAUSE_S)
        client.close()

    def until(self, jobs: int) -> None:
        """Wait until so many were accepted in all."""
        until(lambda: len(self.accepted) >= jobs or any(each.done() for each in self._sending), bound_s=600)

    def stop(self) -> None:
        """Let each end what it began."""
        self._stop.set()
        self._pool.shutdown()
        for each in self._sending:
            each.result()


LINKS: Final = {
    "api": ("redis", "postgresql", "gateway"),
    "keeper": ("redis", "postgresql"),
    "executor": ("redis", "model"),
}
"""By each process of ours that is not Bento's: what it is connected to. The links of Bento's: test_links.py."""


class ProxiedLinks:
    """A context in which a proxy stands on each of ``LINKS`` of a running cluster, and before the API itself.

    The processes are started again with other addresses, one by one, and with the old ones at the end.
    """

    def __init__(self, cluster: FaultyCluster) -> None:
        self._cluster = cluster
        self._files = [cluster.folder / "penstock.yaml", cluster.data / "cluster.yaml"]
        self._originals = [file.read_text() for file in self._files]
        stores = cluster.configuration.stores
        self._ports = {
            "redis": _port(stores.redis.url),
            "postgresql": _port(stores.postgresql.url),
            "gateway": _port(cluster.configuration.queue.gateway),
            "model": cluster.model.port,
        }
        self.by_name: dict[str, FaultProxy] = {}

    def __enter__(self) -> ProxiedLinks:
        self.by_name["client"] = FaultProxy(self._cluster.ports["port"])
        for process, links in LINKS.items():
            for link in links:
                self.by_name[f"{process}-{link}"] = FaultProxy(self._ports[link])
        for proxy in self.by_name.values():
            proxy.start()
        for process, links in LINKS.items():
            for file, original in zip(self._files, self._originals, strict=True):
                text = original
                for link in links:
                    text = text.replace(f":{self._ports[link]}", f":{self.by_name[f'{process}-{link}'].port}")
                file.write_text(text)
            self._restart(process)
        self._restore()
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
        for process in LINKS:
            self._restart(process)
        for proxy in self.by_name.values():
            proxy.stop()

    def _restore(self) -> None:
        for file, original in zip(self._files, self._originals, strict=True):
            file.write_text(original)

    def _restart(self, process: str) -> None:
        until(lambda: process in self._cluster.pids)
        self._cluster.kill_one(process)
        with self._cluster.client() as client:
            until(lambda: _answers(client))

    def client(self) -> httpx.Client:
        """Of the API, by way of its proxy."""
        url = f"http://127.0.0.1:{self.by_name['client'].port}"
        bearer = {"authorization": f"Bearer {self._cluster.key()}"}
        return httpx.Client(base_url=url, headers=bearer, timeout=60, trust_env=False)


def _port(url: str) -> int:
    return int(url.partition("://")[2].partition("/")[0].rpartition(":")[2])


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/v1/models").status_code == 200
    except httpx.TransportError:
        return False


def all_ended(cluster: FaultyCluster, accepted: Sequence[str], *, bound_s: float) -> Mapping[str, Mapping[str, Any]]:
    """Wait until every accepted job has ended; what is known of all jobs then."""
    found: dict[str, dict[str, Any]] = {}

    def have_ended() -> bool:
        with suppress(httpx.TransportError):
            found.update(cluster.stored())
        return all(found.get(job, {}).get("status") in ENDS for job in accepted)

    try:
        until(have_ended, bound_s=bound_s)
    except AssertionError:
        statuses = Counter(str(found.get(job, {}).get("status")) for job in accepted)
        raise AssertionError(f"not all jobs ended within {bound_s} s: {statuses}") from None
    return found


def wrong_with(
    cluster: FaultyCluster, accepted: Sequence[str], stored: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """What is not as promised, when nothing is under way any more."""
    events, produced = cluster.audited(bound_s=2 * DEADLINE_S), cluster.model.produced()
    for job in accepted:
        if stored[job]["status"] != "succeeded":
            yield f"job {job} is {stored[job]['status']}: {stored[job]}"
    yield from bills_wrong(events, stored)
    yield from ledger_wrong(events, produced)
    mine = (event for event in events if (event.lane, event.organisation) == (Lane.QUEUE.value, ORGANISATION))
    unknown = {event.reservation for event in mine if event.charge.requests} - stored.keys()
    if unknown:
        yield f"billed, and nobody sees a job: {sorted(unknown)}"


def again(cluster: FaultyCluster, stored: Mapping[str, Any]) -> int:
    """How many more times than once jobs reached the model server."""
    return executions_again(cluster.model.produced(), stored)
