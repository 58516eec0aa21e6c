"""What is acknowledged is on the disk; what nobody waits for is not waited for; a failure loses nothing."""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import monotonic

import pytest
from sqlalchemy import text

from penstock.adapters.embedded.committing import OPEN_COMMIT_S
from penstock.adapters.embedded.crash_points import ACKNOWLEDGED, GROUP_TAKEN
from penstock.adapters.sql.database import open_engine, writing
from penstock.errors import StoreUnavailable
from penstock.quota import (
    Define,
    Definitions,
    Duplicate,
    EventKind,
    Lane,
    NotReady,
    Ready,
    Reserved,
    Settled,
    State,
)
from tests.adapters.embedded.counter import ACME, Counter, held, name, run, used

MONTH = "acme/tokens/month"


def test_a_settle_is_in_the_ledger_when_it_is_acknowledged(counter: Counter) -> None:
    async def test() -> None:
        async with counter.opened():
            assert isinstance(await counter.reserve(1), Reserved)
            assert isinstance(await counter.settle(1), Settled)
            (event,) = counter.ledger()
        assert (event.reservation, event.kind, event.charge.tokens) == (name(1), EventKind.POSTED, 150)

    run(test)


def test_a_void_and_an_expiry_are_in_the_ledger_when_they_are_acknowledged(counter: Counter) -> None:
    async def test() -> None:
        async with counter.opened():
            await counter.reserve(1)
            await counter.reserve(2)
            await counter.void(1)
            assert [event.kind for event in counter.ledger()] == [EventKind.VOIDED]
            counter.now_ms += 60_000
            assert (await counter.sweep()).count == 1
            assert [event.kind for event in counter.ledger()] == [EventKind.VOIDED, EventKind.EXPIRED]

    run(test)


def test_a_job_is_in_the_database_when_it_is_accepted_and_a_realtime_request_is_not_waited_for(
    counter: Counter,
) -> None:
    async def test() -> None:
        async with counter.opened():
            await counter.reserve(1)
            await counter.touch(1, 10, 5)
            assert counter.commits.groups == 0
            assert isinstance(await counter.reserve(2, lane=Lane.QUEUE), Reserved)
            assert counter.rows("reservations") == 1
            assert [event.kind for event in counter.ledger()] == [EventKind.RESERVED]

    run(test)


def test_an_open_request_reaches_the_database_though_nobody_waits(counter: Counter) -> None:
    async def test() -> None:
        committed = asyncio.Event()
        async with counter.opened(reached=lambda point: committed.set() if point == ACKNOWLEDGED else None):
            await counter.reserve(1)
            while not counter.rows("reservations"):
                committed.clear()
                await asyncio.wait_for(committed.wait(), 30)

    run(test)


def test_an_open_request_gets_its_row_late_but_though_others_end_all_the_time(counter: Counter) -> None:
    async def test() -> None:
        begun_s = monotonic()
        async with counter.opened():
            await counter.reserve(0)
            number = 0
            while not counter.rows("reservations"):
                number += 1
                assert number < 100_000
                await counter.reserve(number)
                await counter.settle(number)
            assert monotonic() - begun_s >= OPEN_COMMIT_S
            assert counter.rows("reservations") == 1
            await counter.settle(0)
            assert counter.rows("reservations") == 0

    run(test)


def test_settles_that_come_together_share_commits(counter: Counter) -> None:
    async def test() -> None:
        async with counter.opened():
            for number in range(100):
                await counter.reserve(number)
            await asyncio.gather(*(counter.settle(number) for number in range(100)))
            assert counter.commits.events == 100
            assert counter.commits.groups <= 2
            assert len(counter.ledger()) == 100

    run(test)


def test_a_request_that_ends_within_one_group_leaves_only_its_ledger_row(counter: Counter) -> None:
    async def test() -> None:
        async with counter.opened():
            await counter.reserve(1)
            await counter.settle(1)
            assert (counter.rows("reservations"), counter.rows("ledger")) == (0, 1)
            assert counter.rows("bucket_states") == 3

    run(test)


def test_the_row_of_an_open_request_goes_with_its_settle(counter: Counter) -> None:
    async def test() -> None:
        async with counter.opened():
            await counter.reserve(1)
            await counter.reserve(2, lane=Lane.QUEUE)
            await counter.settle(1)
            assert counter.rows("reservations") == 1

    run(test)


def test_a_settle_whose_caller_is_gone_is_committed_all_the_same(counter: Counter) -> None:
    async def test() -> None:
        taken = asyncio.Event()
        async with counter.opened(reached=lambda point: taken.set() if point == GROUP_TAKEN else None):
            await counter.reserve(1)
            taken.clear()
            task = asyncio.create_task(counter.settle(1))
            await taken.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert len(counter.ledger()) == 1

    run(test)


def test_closing_commits_what_nobody_waited_for(counter: Counter) -> None:
    async def test() -> None:
        async with counter.opened():
            await counter.reserve(1)
        assert counter.rows("reservations") == 1

    run(test)


def test_an_organisation_that_was_never_defined_is_not_ready_and_one_defined_later_is(counter: Counter) -> None:
    async def test() -> None:
        async with counter.opened() as store:
            assert await counter.reserve(1, organisation="later") == NotReady()
            now_ms = counter.now_ms
            definitions = Definitions(keys=ACME.keys, models=ACME.models)
            await store.apply(Define(organisation="later", caller_now_ms=now_ms, version=1, definitions=definitions))
            await store.apply(Ready(organisation="later", caller_now_ms=now_ms, epoch=1))
            assert isinstance(await counter.reserve(1, organisation="later"), Reserved)
            assert store.organisations == ("acme", "later")
            assert counter.rows("epochs") == 2

    run(test)


@contextmanager
def _locked(counter: Counter) -> Iterator[None]:
    """Another process writes, and does not finish."""
    engine = open_engine(counter.path)
    with writing(engine):
        yield
    engine.dispose()


@contextmanager
def _full(counter: Counter) -> Iterator[None]:
    """No file of this process may grow beyond what the write-ahead log has: the disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = counter.path.with_name(counter.path.name + "-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("broken", [_locked, _full])
def test_a_failed_commit_stops_admission_until_one_works_and_loses_nothing(
    counter: Counter, broken: Callable[[Counter], AbstractContextManager[None]], caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with counter.opened(busy_ms=1):
            for number in range(3):
                await counter.reserve(number)
            await counter.settle(0)
            with broken(counter):
                with pytest.raises(
                    StoreUnavailable,
                    match=r"written: (database is locked|disk I/O error); .*tried again",
                ):
                    await counter.settle(1)
                with pytest.raises(StoreUnavailable, match="nothing is admitted until it can"):
                    await counter.reserve(4)
                with pytest.raises(StoreUnavailable):
                    await counter.settle(2)
                assert len(counter.ledger()) == 1
                assert await counter.differences() == []
            assert await counter.settle(1) == Duplicate(State.POSTED)
            assert len(counter.ledger()) == 3
            assert isinstance(await counter.reserve(4), Reserved)
            assert await counter.differences() == []
            assert used(await counter.inspect(), MONTH) == 450
            assert counter.commits.failures >= 2

    with caplog.at_level(logging.ERROR):
        run(test)
    assert "admission is stopped" in caplog.text


def test_a_store_that_closes_in_the_middle_of_a_failure_says_what_is_lost(counter: Counter) -> None:
    async def test() -> None:
        async with counter.opened(busy_ms=1) as store:
            await counter.reserve(1)
            with _locked(counter):
                with pytest.raises(StoreUnavailable):
                    await counter.settle(1)
                await store.close()

    with pytest.raises(StoreUnavailable, match="the last commit failed and 1 events are not in the ledger"):
        run(test)


def test_the_ledger_stands_still_while_it_is_audited(counter: Counter) -> None:
    async def test() -> None:
        taken = asyncio.Event()
        async with counter.opened(reached=lambda point: taken.set() if point == GROUP_TAKEN else None) as store:
            for number in range(20):
                await counter.reserve(number)
            taken.clear()
            settles = [asyncio.create_task(counter.settle(number)) for number in range(20)]
            await taken.wait()
            await counter.reserve(20)
            settles += [asyncio.create_task(counter.void(20))]
            async with store.unwritten() as unwritten:
                before = len(await asyncio.to_thread(counter.ledger))
                assert len(await asyncio.to_thread(counter.ledger)) == before
                assert before + len(unwritten) == 21
            await asyncio.gather(*settles)
            assert await counter.differences() == []
            assert held(await counter.inspect()) == {}

    run(test)


def test_keys_may_be_written_by_another_process_while_the_service_runs(counter: Counter) -> None:
    async def test() -> None:
        async with counter.opened():
            engine = open_engine(counter.path)
            with writing(engine) as connection:
                connection.execute(text("INSERT INTO versions VALUES ('definitions', 1)"))
            engine.dispose()
            await counter.reserve(1)
            assert isinstance(await counter.settle(1), Settled)

    run(test)


@pytest.mark.parametrize("reservation", ["r1", ""])
def test_an_id_that_has_no_month_is_refused_before_it_can_spoil_a_group(counter: Counter, reservation: str) -> None:
    async def test() -> None:
        async with counter.opened():
            with pytest.raises(ValueError):  # noqa: PT011 - the number's own message
                await counter.reserve(reservation)
            with pytest.raises(ValueError):  # noqa: PT011
                await counter.void(reservation)
            await counter.reserve(1)
            assert isinstance(await counter.settle(1), Settled)

    run(test)
