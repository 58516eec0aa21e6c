"""After a restart everything counts as before: windows, holds, buckets, and what must be remembered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.errors import ConfigurationError, StoreUnavailable
from penstock.quota import Define, Denied, Duplicate, EventKind, Lane, Limit, Mismatch, Reserved, Settled, State, Usage
from tests.adapters.embedded.counter import ACME, DAY_MS, MINUTE_MS, Counter, held, run, used

MONTH = "acme/tokens/month"
DAY = "acme:team:search/tokens/day"


def test_limits_and_holds_stand_after_a_restart_as_before_it(counter: Counter) -> None:
    async def test() -> None:
        async with counter.opened():
            for number in range(6):
                await counter.reserve(number)
                counter.now_ms += 7
            await counter.settle(0)
            await counter.void(1)
            await counter.touch(2, 50, 3)
            before = await counter.inspect()
        async with counter.opened():
            assert await counter.inspect() == before
            assert await counter.differences() == []

    run(test)


def test_an_open_request_expires_after_a_restart_at_its_last_touch(counter: Counter) -> None:
    async def test() -> None:
        async with counter.opened():
            await counter.reserve(1)
            await counter.touch(1, 100, 20)
            await counter.touch(1, 90, 40)
        async with counter.opened():
            assert held(await counter.inspect())[MONTH] == 500
            counter.now_ms += MINUTE_MS
            await counter.sweep()
            assert held(await counter.inspect()) == {}
            assert used(await counter.inspect(), MONTH) == 140
            assert await counter.differences() == []
            assert counter.rows("ledger") == 1

    run(test)


def test_a_late_settle_after_a_restart_adds_only_what_the_expiry_did_not_charge(counter: Counter) -> None:
    async def test() -> None:
        async with counter.opened():
            await counter.reserve(1)
            await counter.touch(1, 100, 20)
            counter.now_ms += MINUTE_MS
            await counter.sweep()
        async with counter.opened():
            answer = await counter.settle(1, Usage(100, 50))
            assert isinstance(answer, Settled)
            assert answer.state is State.LATE
            assert used(await counter.inspect(), MONTH) == 150
            assert used(await counter.inspect(), DAY) == 150
            assert [event.kind for event in counter.ledger()] == [EventKind.EXPIRED, EventKind.LATE]
            assert await counter.differences() == []
        async with counter.opened():
            assert await counter.settle(1) == Duplicate(State.LATE)

    run(test)


def test_what_has_ended_is_remembered_across_a_restart(counter: Counter) -> None:
    async def test() -> None:
        async with counter.opened():
            await counter.reserve(1)
            await counter.settle(1)
            await counter.reserve(2)
            await counter.void(2)
            await counter.void(3)
        async with counter.opened():
            assert await counter.settle(1) == Duplicate(State.POSTED)
            assert await counter.reserve(1) == Duplicate(State.POSTED)
            assert await counter.void(2) == Duplicate(State.VOIDED)
            assert await counter.reserve(3) == Duplicate(State.VOIDED)
            assert counter.rows("ledger") == 2

    run(test)


def test_a_job_is_remembered_until_its_own_deadline(counter: Counter) -> None:
    async def test() -> None:
        async with counter.opened():
            await counter.reserve(1, lane=Lane.QUEUE, job_deadline_ms=counter.now_ms + DAY_MS)
            await counter.void(1)
        counter.now_ms += DAY_MS - 1
        async with counter.opened():
            assert await counter.void(1) == Duplicate(State.VOIDED)

    run(test)


def test_an_expired_request_keeps_its_fingerprint_across_a_restart(counter: Counter) -> None:
    async def test() -> None:
        async with counter.opened():
            await counter.reserve(1)
            counter.now_ms += MINUTE_MS
            await counter.sweep()
        async with counter.opened():
            assert await counter.reserve(1, fingerprint="other") == Mismatch()

    run(test)


def test_records_of_what_is_forgotten_leave_the_database(counter: Counter) -> None:
    async def test() -> None:
        async with counter.opened():
            await counter.void(1)
            await counter.reserve(2)
            counter.now_ms += MINUTE_MS
            await counter.sweep()
            assert counter.rows("reservations") == 2
        counter.now_ms += 16 * MINUTE_MS
        async with counter.opened():
            await counter.sweep()
            assert counter.rows("reservations") == 0

    run(test)


def test_a_bucket_is_as_empty_after_a_restart_as_before(counter: Counter) -> None:
    async def test() -> None:
        definitions = replace(ACME, limits=(replace(ACME.limits[0], cap=600),))
        async with counter.opened(definitions):
            await counter.reserve(1)
            await counter.settle(1, Usage(300, 200))
        async with counter.opened(definitions):
            answer = await counter.reserve(2)
            assert isinstance(answer, Denied)
            assert answer.available == 100

    run(test)


def test_a_cap_raised_while_serving_refills_a_bucket_from_that_moment_on_even_after_a_restart(counter: Counter) -> None:
    async def test() -> None:
        small, large = (replace(ACME, limits=(replace(ACME.limits[0], cap=cap),)) for cap in (600, 60_000))
        async with counter.opened(small) as store:
            await counter.reserve(1)
            await counter.settle(1, Usage(300, 200))
            counter.now_ms += MINUTE_MS // 4
            await store.apply(Define(organisation="acme", caller_now_ms=counter.now_ms, version=2, definitions=large))
            before = await counter.inspect()
            assert before.limits[0].available == 250
        async with counter.opened(large):
            assert await counter.inspect() == before

    run(test)


def test_a_bucket_that_was_never_used_is_full_after_a_restart(counter: Counter) -> None:
    async def test() -> None:
        async with counter.opened():
            pass
        async with counter.opened():
            assert isinstance(await counter.reserve(1), Reserved)

    run(test)


def test_the_clock_does_not_go_back_behind_the_ledger(counter: Counter) -> None:
    async def test() -> None:
        async with counter.opened():
            await counter.reserve(1)
            await counter.settle(1)
        counter.now_ms -= 5_000
        async with counter.opened():
            assert (await counter.inspect()).now_ms == counter.now_ms + 5_000

    run(test)


def test_a_window_that_ended_while_nobody_served_begins_at_zero(counter: Counter) -> None:
    async def test() -> None:
        async with counter.opened():
            await counter.reserve(1)
            await counter.settle(1)
        counter.now_ms += DAY_MS
        async with counter.opened():
            inspected = await counter.inspect()
            assert (used(inspected, DAY), used(inspected, MONTH)) == (0, 150)
            assert await counter.differences() == []

    run(test)


def test_a_limit_that_left_and_returns_continues_where_it_was(counter: Counter) -> None:
    async def test() -> None:
        async with counter.opened():
            await counter.reserve(1)
            await counter.settle(1)
        async with counter.opened(replace(ACME, limits=())):
            assert used(await counter.inspect(), MONTH) == 150
        async with counter.opened():
            assert used(await counter.inspect(), MONTH) == 150
            assert await counter.differences() == []

    run(test)


def test_a_window_longer_than_a_month_is_summed_from_its_beginning(counter: Counter) -> None:
    async def test() -> None:
        year = Limit(owner="acme", metric=ACME.limits[2].metric, kind=ACME.limits[2].kind, cap=9_999, period_ms=10**11)
        definitions = replace(ACME, limits=(year,))
        async with counter.opened(definitions):
            await counter.reserve(1)
            await counter.settle(1)
        counter.now_ms += 40 * DAY_MS
        async with counter.opened(definitions):
            assert used(await counter.inspect(), "acme/tokens/window-100000000000-0") == 150

    run(test)


def test_two_services_on_one_database_are_refused(counter: Counter) -> None:
    async def test() -> None:
        async with counter.opened():
            with pytest.raises(StoreUnavailable, match="already serves the database"):
                async with Counter(counter.path).opened():
                    pass

    run(test)


def test_unfit_definitions_are_refused_by_name(counter: Counter) -> None:
    async def test() -> None:
        with pytest.raises(ConfigurationError, match=r"organisations.acme: limit acme/tokens/minute has a cap of -1"):
            async with counter.opened(replace(ACME, limits=(replace(ACME.limits[0], cap=-1),))):
                pass

    run(test)
