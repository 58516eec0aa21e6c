"""Whoever waits for a job hears of it through the database, again after the connection was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text

from penstock.adapters.postgresql.noticing import notice

pytestmark = pytest.mark.slow  # real services: left out of the quick check

BOUND_S = 30.0


class Told:
    """What arrived, and a way to wait for it."""

    def __init__(self) -> None:
        self.jobs: list[str] = []
        self.more = asyncio.Event()

    def __call__(self, job: str) -> None:
        self.jobs.append(job)
        self.more.set()

    async def until(self, holds: Callable[[], bool], again: Callable[[], object]) -> None:
        async with asyncio.timeout(BOUND_S):
            while not holds():
                await asyncio.to_thread(again)
                self.more.clear()
                try:
                    async with asyncio.timeout(0.2):
                        await self.more.wait()
                except TimeoutError:
                    continue


def send(engine: Engine, job: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_notify('penstock_jobs', :job)"), {"job": job})


def test_a_notice_arrives_and_arrives_again_after_the_connection_was_lost(engine: Engine) -> None:
    async def main() -> None:
        told = Told()
        noticing = asyncio.create_task(notice(engine, told))
        await told.until(lambda: "job-1" in told.jobs, lambda: send(engine, "job-1"))
        await asyncio.to_thread(end_others, engine)
        await told.until(lambda: "job-2" in told.jobs, lambda: send(engine, "job-2"))
        noticing.cancel()
        await asyncio.wait([noticing])
        assert noticing.cancelled()

    asyncio.run(main())


def end_others(engine: Engine) -> None:
    """End every connection but this one."""
    with engine.connect() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
