"""The garbage collector while a service answers."""

from __future__ import annotations

import gc

from penstock.wiring.listening import COLLECT_AFTER, what_stays_is_spared


def test_what_was_there_is_passed_over_while_the_service_answers_and_no_longer() -> None:
    before = gc.get_threshold()
    with what_stays_is_spared():
        assert gc.get_freeze_count() > 1_000
        assert gc.get_threshold() == (COLLECT_AFTER, *before[1:])
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
