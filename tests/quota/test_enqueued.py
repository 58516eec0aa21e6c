"""What may wait in the queue is bounded at the door: only jobs count, and only until they first run."""

from __future__ import annotations

import pytest

from penstock.quota import Denied, Extended, Lane, Refusal, Reserved, Run, Wait
from penstock.quota.operations import Done, LimitStanding
from tests.quota.desk import LEASE_MS, T0, Desk

TOKENS, REQUESTS, FLIGHT = "acme/tokens/enqueued", "acme/requests/enqueued/m", "acme/concurrency/concurrent"
LIMITS = {TOKENS: 250, REQUESTS: 5}


def test_a_job_holds_its_tokens_of_the_queue_until_it_runs() -> None:
    desk = Desk({**LIMITS, FLIGHT: 1})
    answer = desk.enqueue()
    assert isinstance(answer, Reserved)
    assert [each.limit for each in answer.readings] == [FLIGHT]
    assert (desk.held(TOKENS), desk.held(REQUESTS), desk.held(FLIGHT)) == (100, 1, 0)
    assert isinstance(desk.acquire(), Run)
    assert (desk.held(TOKENS), desk.held(REQUESTS), desk.held(FLIGHT)) == (0, 0, 1)


def test_what_does_not_fit_the_queue_is_refused_until_a_job_has_begun() -> None:
    desk = Desk(LIMITS)
    for job in ("j1", "j2"):
        assert isinstance(desk.enqueue(job), Reserved)
    assert desk.enqueue("j3") == Denied(TOKENS, Refusal.HELD, 100, 50, 1_000)
    desk.acquire("j1")
    assert isinstance(desk.enqueue("j3"), Reserved)


def test_more_than_may_ever_wait_never_fits() -> None:
    answer = Desk({TOKENS: 99}).enqueue()
    assert isinstance(answer, Denied)
    assert answer.refusal is Refusal.NEVER


def test_realtime_requests_do_not_ask_what_bounds_the_queue() -> None:
    desk = Desk({TOKENS: 0, REQUESTS: 0})
    assert isinstance(desk.reserve(lane=Lane.REALTIME), Reserved)
    assert desk.held(TOKENS) == 0


@pytest.mark.parametrize("how", ["cancel", "void", "expire"])
def test_a_job_that_never_ran_leaves_the_queue(how: str) -> None:
    desk = Desk(LIMITS)
    desk.enqueue(job_deadline_ms=T0 + 1_000)
    if how == "expire":
        desk.later(1_000).sweep()
    else:
        assert getattr(desk, how)("j1") == Done()
    assert (desk.held(TOKENS), desk.held(REQUESTS)) == (0, 0)


def test_a_job_that_must_wait_for_its_rate_keeps_its_place_in_the_queue() -> None:
    desk = Desk({**LIMITS, FLIGHT: 1})
    desk.enqueue("j1")
    desk.enqueue("j2")
    desk.acquire("j1")
    assert isinstance(desk.acquire("j2"), Wait)
    assert desk.held(TOKENS) == 100


def test_a_job_that_lost_its_executor_does_not_count_again() -> None:
    desk = Desk(LIMITS)
    desk.enqueue()
    desk.acquire()
    desk.later(LEASE_MS).sweep()
    assert (desk.inspect().holds[0].acquired, desk.held(TOKENS)) == (False, 0)
    assert isinstance(desk.acquire(), Run)
    assert desk.held(TOKENS) == 0


def test_a_queued_job_that_grows_holds_more_of_the_queue() -> None:
    desk = Desk(LIMITS)
    desk.enqueue()
    assert desk.extend("j1", 250) == Extended(250)
    assert desk.held(TOKENS) == 250
    assert isinstance(desk.extend("j1", 251), Denied)
    desk.acquire()
    assert desk.held(TOKENS) == 0


def test_a_lowered_cap_ends_no_job_that_waits() -> None:
    desk = Desk(LIMITS)
    desk.enqueue()
    desk.define({TOKENS: 0})
    assert isinstance(desk.acquire(), Run)


def test_a_bound_of_the_queue_stands_with_the_other_limits() -> None:
    desk = Desk({TOKENS: 250})
    desk.enqueue()
    assert desk.inspect().limits == (LimitStanding(TOKENS, "tokens", "enqueued", 250, 0, 100, 150, 0, 0),)


def test_a_job_told_again_that_waits_holds_its_tokens_of_the_queue_again() -> None:
    desk = Desk({**LIMITS, FLIGHT: 1})
    assert desk.reassert("j1", lane=Lane.QUEUE, acquired=False) == Done()
    assert (desk.held(TOKENS), desk.held(REQUESTS), desk.held(FLIGHT)) == (100, 1, 0)


def test_a_job_told_again_that_runs_has_left_the_queue_and_gives_its_place_back_when_it_ends() -> None:
    desk = Desk({**LIMITS, FLIGHT: 1})
    desk.enqueue()
    assert desk.reassert("j1", lane=Lane.QUEUE) == Done()
    assert (desk.held(TOKENS), desk.held(REQUESTS), desk.held(FLIGHT)) == (0, 0, 1)
    assert desk.inspect().holds[0].acquired
    assert desk.look("j1").started
    desk.settle("j1")
    assert (desk.held(TOKENS), desk.held(REQUESTS), desk.held(FLIGHT)) == (0, 0, 0)
