"""The soak itself: a short one holds every invariant, and each of its comparisons notices what it is there for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock.quota.definitions import Price
from penstock.quota.events import Charge, Event, EventKind, Usage, UsageSource
from tests.system import soak_verdict as verdict
from tests.system.soak import soak
from tests.system.soak_load import Accepted, Seen
from tests.system.soak_samples import Sample, Samples, slope

POSTED = Event(
    kind=EventKind.POSTED, reservation="r1", organisation="acme", team=None, key="k", model="m", lane="realtime",
    occurred_at_ms=1, usage=Usage(10, 5), charge=Charge(tokens=15, requests=1, cost_nanos=20), amounts=(),
    price=Price(prompt_picos=1000, completion_picos=2000), tokens_held=20, job_deadline_ms=1,
)  # fmt: skip
LINE = {"request_id": "r1", "prompt": 10, "cached": 0, "completion": 5, "outcome": "finished"}


@pytest.mark.slow
@pytest.mark.xdist_group("cluster")
@pytest.mark.soak
def test_a_short_soak_with_two_faults_holds_every_invariant(tmp_path: Path, seed: int) -> None:
    result = soak(tmp_path / "soak", tmp_path / "report.json", minutes=0.2, seed=seed, pace=5, every_s=5, faults_max=2)
    assert result.wrong == []
    assert result.seen.jobs
    assert result.seen.whole
    assert len(result.faults) == 2
    assert (tmp_path / "report.json").stat().st_size > 1000


@pytest.mark.parametrize(
    ("status", "reason", "mine", "wrong"),
    [
        ("succeeded", None, Accepted("acme", ""), 0),
        ("failed", None, Accepted("acme", "fault=refuse:400"), 0),
        ("cancelled", None, Accepted("acme", "", cancelled=True), 0),
        ("cancelled", None, Accepted("acme", ""), 1),
        ("queued", None, Accepted("acme", ""), 1),
        ("expired", None, Accepted("acme", ""), 1),
        ("failed", "a bug", Accepted("acme", ""), 1),
    ],
)
def test_a_job_that_ended_in_an_unexplained_way_is_noticed(
    status: str, reason: str | None, mine: Accepted, wrong: int
) -> None:
    assert len(list(verdict.jobs_wrong({"j": mine}, {"j": {"status": status, "reason": reason}}))) == wrong


def test_an_accepted_job_that_is_not_there_is_noticed() -> None:
    assert list(verdict.jobs_wrong({"j": Accepted("acme", "")}, {}))


def shown(status: str, tokens: int = 15) -> dict[str, Any]:
    """A job as the API shows it."""
    return {"status": status, "usage": {"total_tokens": tokens}}


@pytest.mark.parametrize(
    ("events", "stored", "wrong"),
    [
        ([POSTED], {"r1": shown("succeeded")}, 0),
        ([POSTED, replace(POSTED, kind=EventKind.LATE)], {}, 1),
        ([replace(POSTED, charge=Charge(tokens=15, requests=1, cost_nanos=21))], {}, 1),
        ([], {"r1": shown("succeeded")}, 1),
        ([POSTED], {"r1": shown("expired")}, 1),
        ([POSTED], {"r1": shown("succeeded", 16)}, 1),
    ],
)
def test_a_wrong_bill_is_noticed(events: list[Event], stored: dict[str, Any], wrong: int) -> None:
    assert len(list(verdict.bills_wrong(events, stored))) == wrong


LOCAL = replace(POSTED, usage=Usage(12, 5, source=UsageSource.LOCAL))


@pytest.mark.parametrize(
    ("events", "lines", "wrong"),
    [
        ([POSTED], [LINE], 0),
        ([POSTED], [{**LINE, "outcome": "broken", "completion": 2}, LINE], 0),
        ([POSTED], [], 1),
        ([POSTED], [{**LINE, "completion": 6}], 1),
        ([POSTED], [{**LINE, "cached": 1}], 1),
        ([LOCAL], [{**LINE, "completion": 5}], 0),
        ([LOCAL], [{**LINE, "completion": 4}], 1),
        ([replace(POSTED, kind=EventKind.VOIDED, usage=Usage(0, 0, source=UsageSource.NONE))], [], 0),
    ],
)
def test_a_ledger_outside_the_charge_table_is_noticed(
    events: list[Event], lines: list[dict[str, Any]], wrong: int
) -> None:
    assert len(list(verdict.ledger_wrong(events, lines))) == wrong


def test_an_answer_that_was_seen_and_not_billed_is_noticed() -> None:
    seen = Seen()
    seen.whole["acme", "m", 10, 0, 5] += 1
    assert not list(verdict.answers_unbilled(seen, [POSTED]))
    seen.whole["acme", "m", 10, 0, 5] += 1
    assert list(verdict.answers_unbilled(seen, [POSTED]))


def test_a_process_that_grows_in_every_life_is_noticed() -> None:
    def grown(mb_per_hour: float) -> Samples:
        lives = [(pid, at_s) for pid in (1, 2) for at_s in range(0, 1800, 15)]
        return Samples(
            [Sample(at_s, "api", pid, 50 * pid + at_s / 3600 * mb_per_hour, 10, 1, 0.0) for pid, at_s in lives]
        )

    assert not list(verdict.slopes_wrong(grown(verdict.MEMORY_MB_PER_HOUR_OURS - 1)))
    (wrong,) = verdict.slopes_wrong(grown(verdict.MEMORY_MB_PER_HOUR_OURS + 1))
    assert "api: memory_mb" in wrong


def test_a_rebuild_is_a_beginning_for_the_keeper_and_for_nobody_else() -> None:
    def stepped(name: str, *, steps: int) -> Samples:
        heights = [
            (at_s, 60.0 + 40 * sum(at_s >= 2_000 * step for step in range(1, steps + 1)))
            for at_s in range(0, 6_000, 15)
        ]
        return Samples([Sample(at_s, name, 1, mb, 10, 1, 0.0) for at_s, mb in heights], flushed_at_s=[1_995.0])

    assert not list(verdict.slopes_wrong(stepped("keeper", steps=1)))
    assert list(verdict.slopes_wrong(stepped("keeper", steps=2)))  # the other one has no such reason
    assert list(verdict.slopes_wrong(stepped("api", steps=1)))


def test_a_process_that_keeps_files_open_is_noticed() -> None:
    def seen(files: int) -> Samples:
        return Samples([Sample(0, "api", 1, 50, files, 1, 0.0)])

    assert not list(verdict.slopes_wrong(seen(verdict.FILES_MAX_OURS)))
    (wrong,) = verdict.slopes_wrong(seen(verdict.FILES_MAX_OURS + 1))
    assert "files were open at once" in wrong


def test_lives_of_different_height_have_one_slope() -> None:
    assert slope([[(0, 1.0), (1800, 2.0), (3600, 3.0)], [(0, 7.0), (3600, 9.0)]]).per_hour == 2.0
