"""Whatever end of its history a store loses, telling it again what it acknowledged gives the same holds and charges."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from penstock.adapters.redis.replaying import KEPT_MS, Acknowledged
from penstock.quota import (
    Acquire,
    Call,
    Cancel,
    Inspect,
    Inspected,
    Lane,
    NotReady,
    Organisation,
    Post,
    Published,
    Reassert,
    Reserve,
    Settle,
    Settled,
    State,
    Touch,
    Touched,
    Unknown,
    Usage,
    Void,
)
from tests.adapters.redis.desks import define, ready, reserve

pytestmark = pytest.mark.slow  # real services: left out of the quick check

T0_MS = 1_700_000_000_000


def at(call: Any, time_ms: int) -> Any:
    fields = {"caller_now_ms": time_ms}
    if isinstance(call, Reserve | Acquire):
        fields["job_deadline_ms"] = time_ms + 600_000
    return replace(call, **fields)


def calls(random: Random, count: int) -> list[Call[Any]]:
    """Realtime requests and jobs at every step of their lives, a few milliseconds apart."""
    written: list[Call[Any]] = []
    known: list[Reserve] = []
    for number in range(count):
        time_ms = T0_MS + number * 10
        if not known or random.random() < 0.4:
            known.append(at(reserve(number, lane=random.choice(tuple(Lane))), time_ms))
            written.append(known[-1])
            continue
        one = random.choice(known[-12:])
        common: dict[str, Any] = {"organisation": "acme", "caller_now_ms": time_ms, "reservation": one.reservation}
        fields = {name: getattr(one, name) for name in Reserve.__dataclass_fields__} | {"caller_now_ms": time_ms}
        moves: list[Call[Any]] = [
            Settle(**common, usage=Usage(random.randrange(200), random.randrange(100))), Void(**common),
            Touch(**common, prompt=1, completion=random.randrange(100)),
        ]  # fmt: skip
        if one.lane is Lane.QUEUE:
            moves += [Acquire(**fields, epoch=1), Acquire(**fields, epoch=1), Published(**common), Cancel(**common)]
        written.append(random.choice(moves))
    return written


def standing(organisation: Organisation, time_ms: int) -> tuple[Any, ...]:
    """What is used and held of windows and in flight, and by whom; rates are not restored, they refill."""
    found = organisation.apply(Inspect(organisation="acme", caller_now_ms=time_ms), time_ms=time_ms)
    assert isinstance(found, Inspected)
    limits = [(limit.limit, limit.used, limit.held) for limit in found.limits]
    return limits, [(hold.reservation, hold.tokens_held, hold.amounts, hold.acquired) for hold in found.holds]


@pytest.mark.parametrize("lost", [1, 5, 40, 200])
def test_what_was_lost_is_restored_by_telling_it_again(lost: int, seed: int) -> None:
    organisation, acknowledged = Organisation("acme"), Acknowledged()
    for call in (at(define(), T0_MS), at(ready(), T0_MS)):
        organisation.apply(call, time_ms=T0_MS)
    written = calls(Random(seed), 400)
    before = organisation
    for number, call in enumerate(written):
        if number == len(written) - lost:
            before = deepcopy(organisation)
        acknowledged.note(call, organisation.apply(call, time_ms=call.caller_now_ms))
    end_ms = written[-1].caller_now_ms
    for call in acknowledged.again(end_ms):
        before.apply(call, time_ms=end_ms)
    assert standing(before, end_ms) == standing(organisation, end_ms)


def test_telling_again_what_was_not_lost_changes_nothing(seed: int) -> None:
    organisation, acknowledged = Organisation("acme"), Acknowledged()
    for call in (at(define(), T0_MS), at(ready(), T0_MS), *calls(Random(seed), 400)):
        acknowledged.note(call, organisation.apply(call, time_ms=call.caller_now_ms))
    end_ms = organisation.clock_ms
    expected, events = standing(organisation, end_ms), len(organisation.outbox)
    for call in acknowledged.again(end_ms):
        organisation.apply(call, time_ms=end_ms)
    assert standing(organisation, end_ms) == expected
    assert len(organisation.outbox) == events


def test_a_realtime_hold_is_kept_until_its_end_however_long_it_runs_and_nothing_else_is() -> None:
    organisation, acknowledged = Organisation("acme"), Acknowledged()
    made: list[Call[Any]] = [at(define(), T0_MS), at(ready(), T0_MS)]
    made += [at(reserve(number), T0_MS) for number in range(10)]
    made += [Void(organisation="acme", caller_now_ms=T0_MS + 1, reservation=reserve(0).reservation)]
    made += [Touch(organisation="acme", caller_now_ms=T0_MS + 50_000, reservation=reserve(1).reservation, prompt=3,
                   completion=4)]  # fmt: skip
    made += [at(reserve(11), T0_MS + 50_000 + KEPT_MS)]
    for call in made:
        acknowledged.note(call, organisation.apply(call, time_ms=call.caller_now_ms))
    acknowledged.forget(T0_MS + 60_000, through={"acme": acknowledged.number}, lost=())
    told = list(acknowledged.again(T0_MS + 60_000))
    assert {type(call) for call in told} == {Reassert}
    assert len(told) == 10
    reasserted = [call for call in told if isinstance(call, Reassert)]
    touched = next(call for call in reasserted if call.arguments.reservation == reserve(1).reservation)
    assert (touched.prompt, touched.completion, touched.renewed_at_ms) == (3, 4, T0_MS + 50_000)


@pytest.mark.parametrize("answer", [NotReady(), Unknown()])
def test_a_hold_whose_end_found_a_store_that_lost_it_is_told_again(answer: object) -> None:
    organisation, acknowledged = Organisation("acme"), Acknowledged()
    made: list[Call[Any]] = [at(define(), T0_MS), at(ready(), T0_MS), at(reserve(1), T0_MS)]
    for call in made:
        acknowledged.note(call, organisation.apply(call, time_ms=T0_MS))
    later_ms = T0_MS + 2 * KEPT_MS
    here: dict[str, Any] = {"organisation": "acme", "caller_now_ms": later_ms}
    acknowledged.note(Settle(**here, reservation=reserve(1).reservation, usage=Usage(1, 1)), answer)
    assert [type(call) for call in acknowledged.again(later_ms)] == [Reassert]


def test_a_hold_that_was_lost_and_its_usage_posted_by_force_is_not_told_again() -> None:
    organisation, acknowledged = Organisation("acme"), Acknowledged()
    made: list[Call[Any]] = [at(define(), T0_MS), at(ready(), T0_MS), at(reserve(1), T0_MS)]
    for call in made:
        acknowledged.note(call, organisation.apply(call, time_ms=T0_MS))
    later_ms = T0_MS + 2 * KEPT_MS
    post = Post(organisation="acme", caller_now_ms=later_ms, arguments=at(reserve(1), T0_MS), usage=Usage(1, 1))
    acknowledged.note(post, Settled(State.POSTED, 0))
    assert [type(call) for call in acknowledged.again(later_ms)] == [Post]


def test_a_hold_that_is_missing_where_it_was_is_noticed_once_each_time() -> None:
    """A state that was lost and rebuilt between two calls of a process never answers it that it is not ready."""
    organisation, acknowledged = Organisation("acme"), Acknowledged()
    for call in (at(define(), T0_MS), at(ready(), T0_MS), at(reserve(1), T0_MS)):
        acknowledged.note(call, organisation.apply(call, time_ms=T0_MS))
    mine: dict[str, Any] = {"organisation": "acme", "caller_now_ms": T0_MS, "reservation": reserve(1).reservation}
    touch, settle = Touch(**mine, prompt=0, completion=0), Settle(**mine, usage=Usage(1, 1))
    told: list[tuple[Any, object]] = [
        (touch, Unknown()),
        (settle, Unknown()),
        (touch, Touched(T0_MS)),
        (settle, Unknown()),
    ]
    assert [acknowledged.is_missing(*each) for each in told] == [True, False, False, True]
    nobodys = replace(settle, reservation=reserve(2).reservation)
    assert not acknowledged.is_missing(nobodys, Unknown())
