"""The invariants hold for every history: those that a seed writes, and those that Hypothesis looks for."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from penstock.quota import Call, Organisation, Post, Sweep
from tests.quota import invariants
from tests.quota.histories import OPERATIONS, ORGANISATIONS, Scribe, history
from tests.quota.world import World, clone

SEEDS = range(1, 13)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_invariants_hold_at_every_step_of_a_history(seed: int) -> None:
    world = World(*ORGANISATIONS)
    for call, time_ms in history(seed, 150):
        world.step(call, time_ms)
    world.come_to_rest()


def test_a_history_is_the_same_for_the_same_seed() -> None:
    assert list(history(5, 300)) == list(history(5, 300))
    assert list(history(5, 300)) != list(history(6, 300))
    assert len(list(history(5, 300))) == 300


def test_histories_reach_every_operation_and_nearly_every_answer() -> None:
    seen = set()
    for seed in range(40):
        world = {each: Organisation(each) for each in ORGANISATIONS}
        for call, time_ms in history(seed, 300):
            answer = world[call.organisation].apply(call, time_ms=time_ms)
            seen.add(f"{type(call).__name__} -> {type(answer).__name__}")
    expected = {
        "Reserve": "Reserved Denied Duplicate Mismatch NoKey OutOfScope NotReady ClockSkew Invalid",
        "Settle": "Settled Duplicate Unknown NotReady Invalid",
        "Void": "Done Duplicate NotReady",
        "Touch": "Touched Cancelled Duplicate Unknown NotReady Invalid",
        "Acquire": "Run Wait Never Gone NotReady ClockSkew Invalid",
        "Published": "Done Duplicate Unknown NotReady",
        "Cancel": "Done Duplicate Unknown NotReady",
        "Extend": "Extended Denied Duplicate Unknown NotReady Invalid",
        "Sweep": "Swept NotReady",
        "Define": "Done Refused",
        "Ready": "Done Refused",
        "Reassert": "Done Duplicate Refused NotReady",
        "Post": "Settled Duplicate NotReady Invalid",
        "Inspect": "Inspected NotReady",
        "Look": "Seen Unknown NotReady",
    }
    assert seen == {f"{call} -> {answer}" for call, answers in expected.items() for answer in answers.split()}


def twins_agree(seed: int, length: int, *, every: int) -> None:
    """13. twins give the same answers and the same rows on the same history.

    Here the twin is the model without its caches: copied, plans and all, every so many steps.
    """
    one = {each: Organisation(each) for each in ORGANISATIONS}
    other = {each: Organisation(each) for each in ORGANISATIONS}
    for step, (call, time_ms) in enumerate(history(seed, length)):
        name = call.organisation
        if step % every == 0:
            other[name] = clone(other[name])
        assert one[name].apply(call, time_ms=time_ms) == other[name].apply(call, time_ms=time_ms), call
        assert one[name].outbox == other[name].outbox


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_hangs_on_what_the_model_caches(seed: int) -> None:
    twins_agree(seed, 300, every=1)


def test_every_id_leaves_open_once_while_it_is_remembered() -> None:
    for seed in (101, 102, 103):
        organisation = Organisation("acme")
        for call, time_ms in history(seed, 400, ("acme",)):
            if not isinstance(call, Sweep | Post):  # nothing is ever forgotten, and so nothing posted unseen
                organisation.forgets.clear()
                organisation.apply(call, time_ms=time_ms)
        assert len(organisation.outbox) > 50
        invariants.every_id_leaves_open_once(organisation.outbox)


class Quota(RuleBasedStateMachine):
    """Any operation on any organisation at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(*ORGANISATIONS)
        self.scribe = Scribe(Random(0))

    def _step(self, call: Call[Any]) -> None:
        self.scribe.written.append(call)
        self.world.step(call, self.scribe.time_ms)

    @initialize(random=st.randoms(), ready=st.booleans())
    def begin(self, random: Random, ready: bool) -> None:
        self.scribe.random = random
        for each in ORGANISATIONS:
            self._step(self.scribe.define(each))
            if ready:
                self.scribe.epochs[each] = 1
                self._step(self.scribe.ready(each))

    @rule(random=st.randoms(), operation=st.sampled_from(OPERATIONS), organisation=st.sampled_from(ORGANISATIONS))
    def operate(self, random: Random, operation: Any, organisation: str) -> None:
        self.scribe.random = random
        self._step(operation(self.scribe, organisation))

    @rule(random=st.randoms(), organisation=st.sampled_from(ORGANISATIONS))
    def reserve_and_settle(self, random: Random, organisation: str) -> None:
        self.scribe.random = random
        self._step(self.scribe.reserve(organisation))
        self._step(self.scribe.settle(organisation))

    @rule(index=st.integers(0, 30))
    def repeat(self, index: int) -> None:
        self._step(self.scribe.written[-1 - index % len(self.scribe.written)])

    @rule(
        ms=st.sampled_from([1, 999, 59_999, 60_000, 900_000, 86_400_000, 3_000_000_000]) | st.integers(-100_000, 10**6)
    )
    def pass_time(self, ms: int) -> None:
        self.scribe.time_ms += ms

    def teardown(self) -> None:
        self.world.come_to_rest()


TestQuota = Quota.TestCase
TestQuota.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
