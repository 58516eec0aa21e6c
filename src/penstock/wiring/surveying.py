"""What the active keeper looks at less often, since it is much: open holds, dead letters, and the audit.

Each on its own, so that a store that is away, or a large ledger, keeps no other waiting. A keeper that stands by shows
none of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from penstock.adapters.observing import catalogue_keeper as catalogue
from penstock.adapters.observing.catalogue_process import STORE_UP
from penstock.adapters.observing.gauges import Gauges
from penstock.adapters.rabbitmq.management import ManagementApi
from penstock.adapters.redis.outbox import Outbox
from penstock.adapters.redis.store import RedisStore
from penstock.errors import StoreUnavailable
from penstock.lanes.audit_report import OrganisationAudit
from penstock.lanes.inspecting import inspect, overdue
from penstock.lanes.keeping import Tally
from penstock.ports import Clock
from penstock.quota.operations import NotReady
from penstock.wiring.auditing_cluster import TooBusy, audit_organisation
from penstock.wiring.stores import Service

HOLDS_EVERY_S: Final = 15.0
BROKER_EVERY_S: Final = 15.0
RETRY_S: Final = 5.0
DEAD_QUEUE: Final = "dead"

log = logging.getLogger("penstock.wiring.surveying")


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """Where a survey looks.

    Args:
        organisations: As they are now.
        broker: RabbitMQ's management API; ``vhost`` has our queues.
    """

    quota: RedisStore
    outbox: Outbox
    engine: Engine
    organisations: Callable[[], Iterable[str]]
    broker: ManagementApi
    vhost: str


class Survey:
    """The three looks, and what they last found.

    Args:
        audit_s: Between two audits; 0: none.
    """

    def __init__(
        self, surveyed: Surveyed, tally: Tally, clock: Clock, gauges: Gauges, *, audit_s: float,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:  # fmt: skip
        self._surveyed = surveyed
        self._tally = tally
        self._clock = clock
        self._gauges = gauges
        self._audit_s = audit_s
        self._pause = pause

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        async with asyncio.TaskGroup() as all_of_it:
            all_of_it.create_task(self._again(self.look_at_holds, HOLDS_EVERY_S))
            all_of_it.create_task(self._again(self.look_at_broker, BROKER_EVERY_S))
            if self._audit_s:
                all_of_it.create_task(self._again(self.audit, self._audit_s))

    async def _again(self, look: Callable[[], Awaitable[None]], every_s: float) -> None:
        while True:
            pause_s = every_s if self._tally.is_active else min(every_s, RETRY_S)
            try:
                await look()
            except (StoreUnavailable, SQLAlchemyError) as error:
                log.warning("a look at the stores failed", extra={"look": look.__name__, "why": str(error)})
                pause_s = min(every_s, RETRY_S)
            await self._pause(pause_s)

    async def look_at_holds(self) -> None:
        """Count open holds, and those that are past their lease."""
        if not self._tally.is_active:
            self._gauges.clear(catalogue.OPEN_HOLDS, catalogue.OPEN_HELD_TOKENS, catalogue.OVERDUE_HOLDS)
            return
        holds: Counter[str] = Counter()
        tokens: Counter[str] = Counter()
        unswept = 0
        for name in tuple(self._surveyed.organisations()):
            read = await inspect(self._surveyed.quota, name, now_ms=self._clock.now_ms())
            if isinstance(read, NotReady):
                continue
            unswept += overdue(read.inspected)
            for hold in read.inspected.holds:
                holds[hold.model] += 1
                tokens[hold.model] += hold.tokens_held
        self._gauges.set(catalogue.OPEN_HOLDS, {(model,): count for model, count in holds.items()})
        self._gauges.set(catalogue.OPEN_HELD_TOKENS, {(model,): count for model, count in tokens.items()})
        self._gauges.set(catalogue.OVERDUE_HOLDS, {(): unswept})

    async def look_at_broker(self) -> None:
        """Whether it answers, and what it gave up."""
        try:
            count = await self._surveyed.broker.messages(self._surveyed.vhost, DEAD_QUEUE)
        except StoreUnavailable:
            self._gauges.put(STORE_UP, (Service.RABBITMQ.value,), 0.0)
            self._gauges.clear(catalogue.DEAD_LETTERS)
            raise
        self._gauges.put(STORE_UP, (Service.RABBITMQ.value,), 1.0)
        is_shown = self._tally.is_active and count is not None
        self._gauges.set(catalogue.DEAD_LETTERS, {(DEAD_QUEUE,): float(count or 0)} if is_shown else {})

    async def audit(self) -> None:
        """Compare every organisation that is not too busy."""
        if not self._tally.is_active:
            self._gauges.clear(catalogue.AUDIT_DIFFERENCES, catalogue.AUDIT_LAST_SUCCESS)
            return
        seen = self._surveyed
        differences: dict[tuple[str, ...], float] = {}
        for name in tuple(seen.organisations()):
            try:
                found = await audit_organisation(
                    name, seen.quota, seen.outbox, seen.engine, now_ms=self._clock.now_ms()
                )
            except TooBusy as error:
                log.info("not audited", extra={"why": error.message})
                continue
            differences[name,] = largest(found)
            for difference in found.differences:
                log.error("the audit found a difference", extra={"organisation": name, "what": difference.message})
        self._gauges.set(catalogue.AUDIT_DIFFERENCES, differences)
        self._gauges.set(catalogue.AUDIT_LAST_SUCCESS, {(): self._clock.now_ms() / 1000})


def largest(audit: OrganisationAudit) -> int:
    """The largest of an audit's differences; 1 where only rows contradict each other."""
    return max((max(1, abs(each.counter - each.expected)) for each in audit.differences), default=0)
