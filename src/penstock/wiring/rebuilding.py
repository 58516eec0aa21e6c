"""``penstock rebuild``: what a keeper does for an organisation that Redis lost, for a person who wants it now."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from functools import partial

from penstock.adapters.postgresql.database import check_prepared
from penstock.adapters.postgresql.keeping import KeeperStore
from penstock.adapters.postgresql.leading import Leadership, session_options
from penstock.adapters.redis.outbox import Outbox
from penstock.adapters.redis.restoring import Restorer
from penstock.adapters.redis.store import RedisStore
from penstock.config import Configuration
from penstock.errors import ConfigurationError
from penstock.lanes.draining import Draining
from penstock.lanes.keeping import READ_MAX
from penstock.lanes.rebuilding import Rebuilder
from penstock.quota.definitions import Definitions
from penstock.quota.operations import Inspect, NotReady
from penstock.wiring.clock import SystemClock
from penstock.wiring.database import cluster_engine
from penstock.wiring.governing import Governing
from penstock.wiring.keeping import LEASE_S
from penstock.wiring.quota import open_outbox, open_quota, open_restorer
from penstock.wiring.stores import Role

LOOK_EVERY_S = 0.2


async def rebuild_now(
    configuration: Configuration,
    organisations: tuple[str, ...],
    *,
    is_forced: bool,
    rebuild_s: float,
    tell: Callable[[str], None],
) -> None:
    """Rebuild, wait for what running requests claim, and let admissions begin.

    Args:
        organisations: Those to be rebuilt; none are all that Redis has lost, or every one if forced.
        is_forced: What Redis still has is forgotten first; its outbox goes to the ledger before.
        rebuild_s: How long holds may be claimed.
        tell: Given a line for each step.

    Raises:
        ConfigurationError: There are no stores, no such organisation, nothing was lost, or a keeper is active.
        StoreUnavailable: A service cannot be reached.
    """
    if configuration.stores is None:
        raise ConfigurationError(("stores: not given, and the embedded default rebuilds itself at its start",))
    clock = SystemClock()
    async with AsyncExitStack() as parts:
        options = session_options(LEASE_S + rebuild_s)
        engines = [cluster_engine(configuration, Role.KEEPER, options=options, connections_max=1) for _ in range(2)]
        for each in engines:
            parts.callback(each.dispose)
        await asyncio.to_thread(check_prepared, engines[0])
        engine = cluster_engine(configuration, Role.KEEPER)
        parts.callback(engine.dispose)
        governing = await asyncio.to_thread(Governing, engine, clock)
        quota = await parts.enter_async_context(open_quota(configuration, Role.KEEPER))
        lost = await _chosen(quota, governing.current, organisations, is_forced=is_forced, now_ms=clock.now_ms())
        leadership = Leadership(
            engines[1], process=f"rebuild:{socket.gethostname()}:{os.getpid()}", now_ms=clock.now_ms
        )
        books = KeeperStore(engines[0], leadership, now_ms=clock.now_ms)
        if not await books.take():
            raise ConfigurationError(
                ("a keeper is active, and rebuilds what is lost by itself; stop every `penstock keeper` first",)
            )
        parts.push_async_callback(books.leave)
        outbox = await parts.enter_async_context(open_outbox(configuration, Role.KEEPER))
        restorer = await parts.enter_async_context(open_restorer(configuration, Role.KEEPER))
        rebuilder = Rebuilder(books, quota, restorer, clock, lease_ms=round(rebuild_s * 1000), tell=tell)
        drain = partial(_drained, outbox, Draining(books, quota, clock))
        await _keep_epochs(quota, books, lost, now_ms=clock.now_ms())
        begun_s = time.monotonic()
        await _rebuilt(rebuilder, restorer, governing, lost, drain, is_forced=is_forced)
        tell(f"rebuilt in {time.monotonic() - begun_s:.1f} s; admissions begin in {rebuild_s:.0f} s")
        while rebuilder.under_way:
            await asyncio.sleep(LOOK_EVERY_S)
            for name in rebuilder.under_way:
                await rebuilder.tend(name, governing.version, lost[name], is_lost=False, drain=drain)
        tell(f"admissions begin: {', '.join(lost)}")


async def _chosen(
    quota: RedisStore,
    known: Mapping[str, Definitions],
    organisations: tuple[str, ...],
    *,
    is_forced: bool,
    now_ms: int,
) -> dict[str, Definitions]:
    unknown = sorted(set(organisations) - known.keys())
    if unknown:
        raise ConfigurationError((f"{', '.join(unknown)}: no such organisation; there are {', '.join(sorted(known))}",))
    chosen = {}
    for name in organisations or tuple(known):
        found = await quota.apply(Inspect(organisation=name, caller_now_ms=now_ms, holds_max=0))
        if is_forced or isinstance(found, NotReady):
            chosen[name] = known[name]
        elif organisations:
            raise ConfigurationError(
                (f"{name}: Redis has its state, in epoch {found.epoch}; add --force to forget it and rebuild",)
            )
    if not chosen:
        raise ConfigurationError(("Redis has the state of every organisation; add --force to forget it and rebuild",))
    return chosen


async def _rebuilt(
    rebuilder: Rebuilder,
    restorer: Restorer,
    governing: Governing,
    lost: Mapping[str, Definitions],
    drain: Callable[[], Awaitable[None]],
    *,
    is_forced: bool,
) -> None:
    for name, definitions in lost.items():
        if is_forced:
            await drain()
            await restorer.forget(name)
        await rebuilder.tend(name, governing.version, definitions, is_lost=True, drain=drain)


async def _keep_epochs(quota: RedisStore, books: KeeperStore, names: Iterable[str], *, now_ms: int) -> None:
    """A database from a backup may not know the epoch that Redis is in: it must not begin a second time."""
    for name in names:
        found = await quota.apply(Inspect(organisation=name, caller_now_ms=now_ms))
        if not isinstance(found, NotReady):
            await books.keep_epoch(name, found.epoch)


async def _drained(outbox: Outbox, ledger: Draining) -> None:
    while batches := await outbox.read(count_max=READ_MAX):
        await ledger.drain(batches)
        await outbox.trim({partition: entries[-1].id for partition, entries in batches.items()})
