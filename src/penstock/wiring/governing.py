"""Keeps what governs requests up to date while the service runs: limits, models, prices and keys, from the database.

They change under a running service: by the admin API, the command line and ``penstock setup``. All of them share one
version; twice a second it is read, and of a new one what changed is defined, so that a revoked key is refused, and a
lowered cap holds, within two seconds everywhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from penstock.adapters.sql.definition_rows import Governed, read_governed
from penstock.adapters.sql.definitions import Written, record_definitions
from penstock.adapters.sql.keys import Keys
from penstock.adapters.sql.prices import put_in_force
from penstock.adapters.sql.watching import watch
from penstock.config import Configuration, definitions
from penstock.config.compiling import model
from penstock.config.settings import ManagedBy
from penstock.errors import NotFound, StoreUnavailable
from penstock.lanes.credentials import Credential
from penstock.ports import Clock, QuotaStore
from penstock.quota.admitting import is_valid
from penstock.quota.definitions import Definitions, Key, Overrun
from penstock.quota.operations import Define, Inspect, NotReady, Ready, Refused
from penstock.wiring.identity import issuer_keys

FIRST_EPOCH = 1

log = logging.getLogger(__name__)


def in_file(configuration: Configuration) -> Mapping[str, Definitions]:
    """What a configuration says of each organisation."""
    return {name: definitions(configuration, name) for name in configuration.organisations}


def written_in(configuration: Configuration) -> Written:
    """What a configuration says beside definitions."""
    organisations = configuration.organisations
    return Written(
        models={name: model(name, each) for name, each in configuration.models.items()},
        seeded=[name for name, each in organisations.items() if each.managed_by is ManagedBy.API],
        seeded_prices=[name for name, each in configuration.models.items() if each.managed_by is ManagedBy.API],
        teams={name: tuple(each.teams) for name, each in organisations.items()},
        kept_ms={name: (each.retention.results_ms, each.retention.answers_ms) for name, each in organisations.items()},
    )


def record(engine: Engine, configuration: Configuration, *, now_ms: int, actor: str) -> bool:
    """Carry a configuration over into the database; tells whether anything changed but the keys of issuers."""
    changed = record_definitions(
        engine,
        in_file(configuration),
        shards=configuration.queue.shards,
        now_ms=now_ms,
        actor=actor,
        written=written_in(configuration),
    )
    Keys(engine).record_verified(issuer_keys(configuration), now_ms=now_ms, actor=actor)
    return changed


class Governing:
    """The definitions of every organisation, current as of ``version``.

    Args:
        engine: Of the database that has them.
        is_alone: There is no keeper, so what is new is also declared ready here.
        newest_pepper: Its name, where keys are used; those that were made with another are kept under it from then on.
    """

    def __init__(self, engine: Engine, clock: Clock, *, is_alone: bool = False, newest_pepper: str = "") -> None:
        self._engine = engine
        self._keys = Keys(engine)
        self._clock = clock
        self._is_alone = is_alone
        self._newest_pepper = newest_pepper
        self._rehashing: dict[str, asyncio.Task[None]] = {}
        self._lock = asyncio.Lock()
        self._undefined: set[str] = set()
        first = read_governed(engine)
        self._version = first.version
        self.current: dict[str, Definitions] = dict(first.organisations)
        self._newest_at_s = clock.monotonic_s()

    @property
    def version(self) -> int:
        """Of ``current``; at least 1, and higher after each change."""
        return self._version

    @property
    def age_s(self) -> float:
        """Seconds since ``current`` was known to be the newest."""
        return self._clock.monotonic_s() - self._newest_at_s

    async def look(self) -> None:
        """Read everything if anything changed since.

        Raises:
            StoreUnavailable: The database cannot be read.
        """
        async with self._lock:
            await self._look()

    async def _look(self) -> None:
        if await asyncio.to_thread(self._keys.version) + 1 != self._version:
            self._take(await asyncio.to_thread(read_governed, self._engine))
        self._newest_at_s = self._clock.monotonic_s()

    def _take(self, governed: Governed) -> None:
        """In place, since others hold on to ``current``; what did not change stays the same object."""
        for name, each in governed.organisations.items():
            if self.current.get(name) != each:
                self.current[name] = each
                self._undefined.add(name)
        self._version = governed.version

    async def refresh(self, quota: QuotaStore) -> None:
        """Read what changed, and define it.

        Raises:
            StoreUnavailable: A store is away; what is not defined yet will be at the next call.
        """
        async with self._lock:
            await self._look()
            for name in sorted(self._undefined):
                await self._define(quota, name)
                self._undefined.discard(name)

    async def watch(self, quota: QuotaStore) -> None:
        """Define each change, within about a second, until cancelled; put prices in force when they are due."""

        def look() -> int:
            put_in_force(self._engine, now_ms=self._clock.now_ms(), actor="penstock serve")
            version = self._keys.version()
            if version + 1 == self._version:
                self._newest_at_s = self._clock.monotonic_s()
            return version

        async def changed(_version: int) -> None:
            await self.refresh(quota)

        await watch(look, changed, known=self._version - 1)

    async def _define(self, quota: QuotaStore, name: str) -> None:
        now_ms = self._clock.now_ms()
        answer = await quota.apply(
            Define(organisation=name, caller_now_ms=now_ms, version=self._version, definitions=self.current[name])
        )
        if isinstance(answer, Refused):
            log.error("definitions refused", extra={"organisation": name, "why": answer.why})
        elif self._is_alone:
            standing = await quota.apply(Inspect(organisation=name, caller_now_ms=now_ms, holds_max=0))
            if isinstance(standing, NotReady):  # it was not there before, so nothing of it can be lost
                await quota.apply(Ready(organisation=name, caller_now_ms=now_ms, epoch=FIRST_EPOCH))
        log.info("definitions changed", extra={"organisation": name, "version": self._version})

    def overrun(self, organisation: str) -> Overrun:
        """What a stream of this organisation does that outgrows a learned hold."""
        return self.current[organisation].overrun

    async def check(self, credential: Credential) -> Key | None:
        """The key, if it is right now; see ``penstock.api.KeyCheck``."""
        governing = self.current.get(credential.organisation)
        key = None if governing is None else governing.key(credential.key)
        now_ms = self._clock.now_ms()
        right = None if key is None else next((mac for mac in credential.macs if is_valid(key, mac, now_ms)), None)
        if key is None or right is None:
            return None
        if right != credential.macs[0]:
            self._keep_newest(credential, right)
        return credential.narrowed(key)

    def _keep_newest(self, credential: Credential, mac: str) -> None:
        """A key passed by its HMAC under an older pepper: keep the newest one's instead, in a while.

        Called for each use, and does it once; if the database is away, the next use tries again.
        """
        path = f"{credential.organisation}/{credential.key}"
        if self._newest_pepper and path not in self._rehashing:
            self._rehashing[path] = asyncio.get_running_loop().create_task(self._rehash(credential, mac, path))

    async def _rehash(self, credential: Credential, mac: str, path: str) -> None:
        try:
            await asyncio.to_thread(
                self._keys.rehash,
                credential.organisation,
                credential.key,
                old=mac,
                new=credential.macs[0],
                pepper=self._newest_pepper,
                now_ms=self._clock.now_ms(),
                actor="penstock serve",
            )
        except (StoreUnavailable, DBAPIError, NotFound) as error:
            log.warning("a key stays with its older pepper for now", extra={"key": credential.key, "why": str(error)})
        finally:
            del self._rehashing[path]
