"""Look reads one reservation at any point of its life, and changes nothing."""

from __future__ import annotations

from penstock.quota import Seen, State, Unknown
from penstock.quota.operations import NotReady
from tests.quota.desk import LEASE_MS, T0, Desk

QUEUED = Seen(State.OPEN, "m", "k1", "queue", False, False, False, False, T0 + 600_000, T0 + 600_000, 0, 0)


def test_look_follows_a_job_through_its_life() -> None:
    desk = Desk({"acme/tokens/day": 1_000})
    desk.enqueue()
    assert desk.look("j1") == QUEUED
    desk.acquire()
    desk.touch("j1", prompt=3, completion=4)
    running = desk.look("j1")
    assert (running.running, running.started, running.deadline_ms) == (True, True, T0 + LEASE_MS)
    assert (running.touched_prompt, running.touched_completion) == (3, 4)
    desk.cancel("j1")
    desk.published("j1")
    done = desk.look("j1")
    assert (done.running, done.started, done.published, done.cancelled) == (False, True, True, True)
    desk.settle("j1")
    ended = desk.look("j1")
    assert (ended.state, ended.running, ended.deadline_ms) == (State.POSTED, False, 0)


def test_look_tells_that_a_realtime_request_runs() -> None:
    desk = Desk()
    desk.reserve()
    assert (desk.look().lane, desk.look().running, desk.look().started) == ("realtime", True, True)


def test_look_of_what_was_voided_before_it_came_knows_no_more_than_that() -> None:
    desk = Desk()
    desk.void("v1")
    assert desk.look("v1") == Seen(State.VOIDED, "", "", "", False, False, False, False, 0, 0, 0, 0)


def test_look_sweeps_nothing_and_moves_no_clock() -> None:
    desk = Desk()
    desk.reserve()
    desk.later(LEASE_MS)
    assert desk.look().state is State.OPEN
    assert desk.organisation.clock_ms == T0
    assert desk.look("unknown") == Unknown()
    assert Desk(epoch=None).look() == NotReady()
