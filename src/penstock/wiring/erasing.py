"""Erasure, as the service and ``penstock erase`` do it: jobs are told to stop, stored texts go."""

from __future__ import annotations

import asyncio

from sqlalchemy import Engine

from penstock.adapters.sql import erasing
from penstock.adapters.sql.database import scrub, translated, writing
from penstock.adapters.sql.keys import raise_version
from penstock.config import Configuration
from penstock.lanes.administering import By, Erased
from penstock.lanes.inspecting import inspect
from penstock.ports import QuotaStore
from penstock.quota.operations import Cancel, Lane, NotReady
from penstock.wiring.database import opened_database
from penstock.wiring.places import Places
from penstock.wiring.quota import open_quota
from penstock.wiring.stores import Role


async def erase(engine: Engine, quota: QuotaStore | None, organisation: str, job: str | None, by: By) -> Erased:
    """Remove what is stored of an organisation or of one job, then cancel what has not ended.

    Args:
        quota: None where another process has it, which cancels by itself once it notices.

    Raises:
        NotFound: The organisation has no such job.
        StoreUnavailable: A store does not answer; what was removed stays removed.
    """

    def remove() -> erasing.Removed:
        with translated(), writing(engine) as connection:
            raise_version(connection)
            return erasing.erase(connection, organisation, job, by)

    removed = await asyncio.to_thread(remove)
    unfinished = set(removed.unfinished)
    if quota is not None:
        read = await inspect(quota, organisation, now_ms=by.now_ms)
        holds = () if isinstance(read, NotReady) else read.inspected.holds
        waiting = {each.reservation for each in holds if each.lane == Lane.QUEUE and job in (None, each.reservation)}
        unfinished |= waiting  # the database hears of a job a moment after the quota
        for each in sorted(unfinished):
            await quota.apply(Cancel(organisation=organisation, caller_now_ms=by.now_ms, reservation=each))
    is_cluster = engine.dialect.name == "postgresql"
    if not is_cluster:
        await asyncio.to_thread(scrub, engine)
    return Erased(
        organisation=organisation,
        job=job,
        prompts=removed.prompts,
        results=removed.results,
        answers=removed.answers,
        cancelled=len(unfinished),
        stays=erasing.stays(removed, is_cluster=is_cluster),
    )


async def erase_from_outside(configuration: Configuration, places: Places, target: str, by: By) -> Erased:
    """The same for a command, while the service runs or not.

    Args:
        target: An organisation's name, or a job's id.

    Raises:
        NotFound: It is neither.
        StoreUnavailable: A store does not answer.
    """
    with opened_database(configuration, places) as engine:

        def look() -> tuple[str, str | None]:
            with translated(), engine.connect() as connection:
                return erasing.owner_of(connection, target)

        organisation, job = await asyncio.to_thread(look)
        if configuration.stores is None:
            return await erase(engine, None, organisation, job, by)
        async with open_quota(configuration, Role.API) as quota:
            return await erase(engine, quota, organisation, job, by)
