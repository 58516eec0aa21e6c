"""The simulation: requests, first come first served, over the places of replicas that come and go.

A replica has ``concurrency`` places. A heap holds, for each place, when it is free next; a request takes the one that
is free first. Between two looks of the autoscaler places neither come nor go, so that stretch is one tight loop: about
a microsecond for a request.

::

    asked for --cold start--> serving --scaled in--> ending what it runs --> gone
    `------------------ is paid for -------------------------------------'
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappush, heapreplace
from itertools import accumulate
from typing import Final

from penstock.planning import scaling
from penstock.planning.figures import FAR_MS
from penstock.planning.flow import ARRIVALS_BUCKETS, BUCKET_MS, Flow, Passed
from penstock.planning.forecasting.autoscaler import SYNC_US, Autoscaler, Setting, Trigger
from penstock.planning.forecasting.loads import MILLISECOND_US, SECOND_US, Load
from penstock.planning.forecasting.servers import Server

SYNC_PHASE_US: Final = 5 * SECOND_US
"""Neither looks when the other does."""
DUES_MAX: Final = 20
"""Parts that a backlog is cut into for its dues; each counts as due when its first job is."""
KEEPER_LOOKS_US: Final = 3 * SECOND_US
"""The keeper computes its figure anew."""
NAME: Final = "model"
REMEMBERED_US: Final = (ARRIVALS_BUCKETS + 1) * BUCKET_MS * MILLISECOND_US
"""What ended longer ago than this moves no figure."""
LOOKS_PER_TELL: Final = 200
EXPIRY_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class World:
    """What is the same for every setting.

    Args:
        pool: What the keeper computes with; the bounds of replicas are the setting's own.
        is_queued: The queue lane: jobs wait in a queue, and are to be done by ``pool.drain_ms``. Else the realtime
            lane, scaled by what arrives.
        deadline_ms: Of a job, after its acceptance.
    """

    load: Load
    server: Server
    pool: scaling.Pool
    is_queued: bool
    deadline_ms: int = EXPIRY_MS
    first_us: Sequence[int] = field(init=False, repr=False)
    """Of each request, from its start until its first token."""
    whole_us: Sequence[int] = field(init=False, repr=False)
    """Until its end."""
    work_before: Sequence[int] = field(init=False, repr=False)
    """In tokens, of all requests before each one, and of all at last."""

    def __post_init__(self) -> None:
        first_us, whole_us = self.server.times_us(self.load)
        object.__setattr__(self, "first_us", first_us)
        object.__setattr__(self, "whole_us", whole_us)
        object.__setattr__(self, "work_before", list(accumulate(self.load.works(), initial=0)))


@dataclass(frozen=True, slots=True)
class Sample:
    """The pool at one moment: replicas asked for, those that serve, requests that wait, and that run."""

    at_us: int
    replicas: int
    serving: int
    waiting: int
    running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What came of one setting.

    Args:
        started_us: Of each request, in order of arrival.
        samples: At each look of KEDA.
        paid_us: Replicas x time, from asking for one until its last request has ended.
        ended_us: When the last request was done.
    """

    setting: Setting
    started_us: Sequence[int]
    samples: Sequence[Sample]
    paid_us: int
    ended_us: int


def simulate(world: World, setting: Setting, *, tell: Callable[[float], None] = lambda _: None) -> Run:
    """Play the whole load through one setting.

    Args:
        tell: Is called now and then with the share of requests that have started, 0 to 1.
    """
    return _Simulation(world, setting).run(tell)


@dataclass(slots=True)
class _Simulation:
    world: World
    setting: Setting
    autoscaler: Autoscaler = field(init=False)
    places: list[int] = field(default_factory=list)
    """When each place is free next, as a heap."""
    cold: list[int] = field(default_factory=list)
    """When replicas that do not serve yet will."""
    started_us: list[int] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    replicas: int = 0
    figure: int = 0
    """The keeper's last answer."""
    flow: Flow = field(default_factory=Flow)
    ends: Counter[int] = field(default_factory=Counter)
    """Work that ends in each stretch of the keeper's, and that it has not been told of."""
    noted: int = 0
    """Requests whose end is in there."""
    paid_us: int = 0
    paid_until_us: int = 0
    ended_us: int = 0

    pool: scaling.Pool = field(init=False)

    def __post_init__(self) -> None:
        world, setting = self.world, self.setting
        self.autoscaler = Autoscaler(setting)
        self.pool = scaling.Pool(
            tokens_per_second=world.pool.tokens_per_second,
            cold_start_ms=world.pool.cold_start_ms,
            drain_ms=world.pool.drain_ms,
            replicas_min=setting.replicas_min,
            replicas_max=setting.replicas_max,
        )
        self.replicas = self.figure = setting.replicas_min
        self.places = [0] * world.server.places(self.replicas)

    def run(self, tell: Callable[[float], None]) -> Run:
        requests, polling_us = len(self.world.load), self.setting.polling_us
        poll_us, sync_us, looks = 0, SYNC_PHASE_US, 0
        while len(self.started_us) < requests or self.samples[-1].at_us < self.ended_us:
            now_us = min(poll_us, sync_us)
            self._serve(now_us)
            if now_us == poll_us:
                self._poll(now_us)
                poll_us += polling_us
            else:
                self._sync(now_us)
                sync_us += SYNC_US
            self._follow(now_us)
            if self._is_still(now_us):
                skipped = (self.world.load.at_us[len(self.started_us)] - now_us) // polling_us - 1
                poll_us += max(0, skipped) * polling_us
                sync_us += max(0, (poll_us - sync_us) // SYNC_US) * SYNC_US
            looks += 1
            if looks % LOOKS_PER_TELL == 0:
                tell(len(self.started_us) / requests)
        self._pay(max(self.ended_us, self.paid_until_us))
        return Run(
            setting=self.setting,
            started_us=self.started_us,
            samples=self.samples,
            paid_us=self.paid_us,
            ended_us=self.ended_us,
        )

    def _is_still(self, now_us: int) -> bool:
        """Nothing will change until the next request comes, so nobody needs to look before that."""
        setting = self.setting
        if len(self.started_us) == len(self.world.load) or now_us - self.ended_us <= REMEMBERED_US:
            return False
        least = setting.replicas_min
        return setting.is_fixed or (self.replicas == least and self.figure == least and not self.cold)

    def _serve(self, until_us: int) -> None:
        """Start what can start before ``until_us``."""
        places, whole_us, at_us = self.places, self.world.whole_us, self.world.load.at_us
        if not places:
            return
        started = self.started_us.append
        ended_us = self.ended_us
        for index in range(len(self.started_us), len(at_us)):
            start_us, free_us = at_us[index], places[0]
            if free_us > start_us:
                start_us = free_us
            if start_us >= until_us:
                break
            end_us = start_us + whole_us[index]
            heapreplace(places, end_us)
            started(start_us)
            if end_us > ended_us:
                ended_us = end_us
        self.ended_us = ended_us

    def _look(self, now_us: int) -> tuple[int, int]:
        """How many have arrived and not started, and how many run."""
        arrived = bisect_right(self.world.load.at_us, now_us, lo=len(self.started_us))
        self.cold = [each for each in self.cold if each > now_us]
        cold_places = self.world.server.places(self.replicas) - self.world.server.places(self.replicas - len(self.cold))
        busy = sum(1 for free_us in self.places if free_us > now_us)
        return arrived - len(self.started_us), max(0, busy - cold_places)

    def _poll(self, now_us: int) -> None:
        waiting, running = self._look(now_us)
        self.samples.append(Sample(now_us, self.replicas, self.replicas - len(self.cold), waiting, running))
        if self.setting.is_fixed:
            return
        is_active = bool(waiting + running) and self.world.is_queued
        if Trigger.TOKENS in self.setting.triggers:
            self._figure(now_us, waiting, running)
            is_active = is_active or self.figure > 0
        self.autoscaler.poll(now_us, is_active=is_active)

    def _sync(self, now_us: int) -> None:
        if self.setting.is_fixed:
            return
        values = []
        if Trigger.QUEUE in self.setting.triggers:
            jobs = sum(self._look(now_us)) if self.world.is_queued else 0
            values.append((jobs, self.world.server.concurrency))
        if Trigger.TOKENS in self.setting.triggers:
            values.append((self.figure, 1))
        self.autoscaler.sync(now_us, values)

    def _figure(self, now_us: int, waiting: int, running: int) -> None:
        """What the keeper says, who has looked several times since KEDA asked last; each time one goes, if one can."""
        load = self._backlog(now_us, waiting, running) if self.world.is_queued else self._arriving(now_us)
        for _ in range(max(1, self.setting.polling_us // KEEPER_LOOKS_US)):
            before, self.figure = self.figure, scaling.decide(self.pool, load, replicas=self.figure).replicas
            if self.figure >= before:
                return

    def _backlog(self, now_us: int, waiting: int, running: int) -> scaling.Load:
        """Jobs with their dues, and the tokens that they will use: the keeper has learned their share of a hold."""
        at_us, sums, world = self.world.load.at_us, self.world.work_before, self.world
        begun = len(self.started_us)
        first = max(0, begun - running)  # those that began last are, about, those that run
        dues = [
            scaling.Due(tokens=sums[begun] - sums[first], objective_in_ms=world.pool.drain_ms, deadline_in_ms=FAR_MS)
        ]
        last, step = begun + waiting, max(1, -(-waiting // DUES_MAX))
        for index in range(begun, last, step):
            age_ms = (now_us - at_us[index]) // MILLISECOND_US
            dues.append(
                scaling.Due(
                    tokens=sums[min(last, index + step)] - sums[index],
                    objective_in_ms=world.pool.drain_ms - age_ms,
                    deadline_in_ms=world.deadline_ms - age_ms,
                )
            )
        return scaling.Load(backlog=tuple(dues))

    def _arriving(self, now_us: int) -> scaling.Load:
        """Work of requests that have ended, by the keeper's own measure."""
        sums, whole_us, started_us = self.world.work_before, self.world.whole_us, self.started_us
        for index in range(self.noted, len(started_us)):
            end_ms = (started_us[index] + whole_us[index]) // MILLISECOND_US
            self.ends[end_ms // BUCKET_MS] += sums[index + 1] - sums[index]
        self.noted, now_ms = len(started_us), now_us // MILLISECOND_US
        for bucket in [bucket for bucket in self.ends if bucket < now_ms // BUCKET_MS]:
            self.flow.add(NAME, at_ms=bucket * BUCKET_MS, passed=Passed(realtime_work=self.ends.pop(bucket)))
        mean, deviation = self.flow.arrivals(NAME, now_ms=now_ms)
        return scaling.Load(arrivals_per_second=mean, arrivals_deviation=deviation)

    def _follow(self, now_us: int) -> None:
        """Make replicas what the autoscaler asks for."""
        wanted = self.autoscaler.replicas
        if wanted == self.replicas:
            return
        self._pay(now_us)
        while self.replicas < wanted:
            self._add(now_us + self.world.pool.cold_start_ms * MILLISECOND_US)
        while self.replicas > wanted:
            self._take_away(now_us)

    def _pay(self, now_us: int) -> None:
        self.paid_us += self.replicas * (now_us - self.paid_until_us)
        self.paid_until_us = now_us

    def _add(self, serves_us: int) -> None:
        server = self.world.server
        for _ in range(server.places(self.replicas + 1) - server.places(self.replicas)):
            heappush(self.places, serves_us)
        self.cold.append(serves_us)
        self.replicas += 1

    def _take_away(self, now_us: int) -> None:
        """One that does not serve yet, if there is one; else one that is as busy as the others."""
        server = self.world.server
        gone = server.places(self.replicas) - server.places(self.replicas - 1)
        if self.cold:
            serves_us = self.cold.pop()
            for _ in range(gone):
                self.places.remove(serves_us)
        elif gone:
            self.places.sort()
            stride = len(self.places) / gone
            taken = {int(number * stride) for number in range(gone)}
            busy_until_us = max(self.places[index] for index in taken)
            self.places = [free_us for index, free_us in enumerate(self.places) if index not in taken]
            self.paid_us += max(0, busy_until_us - now_us)
        heapify(self.places)
        self.replicas -= 1
