"""A trace is read as it is written, drawn the same for the same seed, and compared so that errors cannot cancel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from penstock.errors import InvalidRequest
from penstock.planning.rehearsing import traces
from penstock.planning.rehearsing.comparing import Account, Books, Produced, difference, difference_of_sums
from penstock.planning.rehearsing.drawing import draw, messages_of, plan_trace, zipf_weights
from penstock.planning.rehearsing.sending import due_s, limit_named_by
from penstock.planning.rehearsing.traces import Arrival
from penstock.quota.definitions import Price
from penstock.quota.events import Charge, Event, EventKind, Usage

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"


def read(*rows: str) -> list[Arrival]:
    return list(traces.read([HEADER, *(row + "\r\n" for row in rows)], name="trace.csv"))


def test_times_count_from_the_first_request() -> None:
    rows = read("2023-11-16 18:15:46.6805900,374,44", "2023-11-16 18:15:50.9951690,396,109")
    assert rows == [Arrival(0, 374, 44), Arrival(4314, 396, 109)]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["2023-11-16 18:15:46,3x,1"], "trace.csv, line 2: .*'3x'"),
        (["2023-11-16 18:15:46,3,1", "yesterday,3,1"], "line 3: .*yesterday"),
        (["2023-11-16 18:15:46,0,1"], "at least one token"),
        (["2023-11-16 18:15:46,1,1", "2023-11-16 18:15:45,1,1"], "never go back"),
        (["2023-11-16 18:15:46,3"], "line 2"),
    ],
)
def test_a_wrong_line_is_named(rows: Sequence[str], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        read(*rows)


def test_a_missing_column_is_named() -> None:
    with pytest.raises(InvalidRequest, match="no column GeneratedTokens"):
        list(traces.read(["TIMESTAMP,ContextTokens"], name="trace.csv"))


def test_the_first_organisation_gets_the_largest_share_and_all_get_some() -> None:
    drawn = draw(5000, organisations=["a", "b", "c"], models=["m"], stream_percent=30, seed=1)
    shares = Counter(one.organisation for one in drawn)
    weights = zipf_weights(3)
    for name, weight in zip("abc", weights, strict=True):
        assert shares[name] == pytest.approx(5000 * weight / sum(weights), rel=0.1)
    assert sum(one.stream for one in drawn) == pytest.approx(1500, rel=0.1)


def test_the_same_seed_draws_the_same() -> None:
    drawn = [draw(50, organisations=["a", "b"], models=["m", "n"], stream_percent=50, seed=s) for s in (7, 7, 8)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_planned_chat_has_the_length_of_its_arrival() -> None:
    drawn = draw(1, organisations=["a"], models=["m"], stream_percent=100, seed=1)
    planned = plan_trace([Arrival(5, 9, 4)], drawn, write_prompt=lambda tokens: "x" * tokens, tokens_per_message=1)
    assert messages_of(planned[0]) == [{"role": "user", "content": "x" * 8}]
    assert b'"simulate":"tokens=4"' in planned[0].body
    assert b'"include_usage":true' in planned[0].body


def test_requests_are_due_at_their_times_or_at_once() -> None:
    assert [due_s(3000, speed) for speed in (1, 2, 0)] == [3.0, 1.5, 0.0]


def test_a_refusal_names_its_limit_and_other_errors_none() -> None:
    assert limit_named_by("acme/search/tokens/day: needs 101 tokens, 20 left") == "acme/search/tokens/day"
    assert limit_named_by("max_tokens: 9000 is more than 1024") == ""
    assert limit_named_by("see a/b c: no") == ""


PRICE = Price(prompt_picos=150_000, cached_picos=75_000, completion_picos=600_000)


def row(
    reservation: str, prompt: int, completion: int, *, cost_nanos: int, kind: EventKind = EventKind.POSTED
) -> Event:
    return Event(
        kind=kind,
        reservation=reservation,
        organisation="acme",
        team=None,
        key="k1",
        model="chat",
        lane="realtime",
        occurred_at_ms=0,
        usage=Usage(prompt, completion),
        charge=Charge(prompt + completion, 1, cost_nanos),
        amounts=(),
        price=PRICE,
        tokens_held=2 * (prompt + completion),
        job_deadline_ms=0,
    )


ROWS = [row("r1", 10, 5, cost_nanos=4500), row("r2", 20, 5, cost_nanos=6000)]
MADE = [Produced("r1", "chat", 10, 5), Produced("r2", "chat", 20, 5)]


def test_a_ledger_that_is_what_was_produced_has_no_difference() -> None:
    assert not difference(Books.of(ROWS), MADE)
    assert not difference_of_sums(Books.of(ROWS), {"chat": Produced("", "chat", 30, 10)})


def test_errors_at_two_requests_do_not_cancel() -> None:
    swapped = [Produced("r1", "chat", 20, 5), Produced("r2", "chat", 10, 5)]
    found = difference(Books.of(ROWS), swapped)
    assert (found.tokens, found.cost_nanos, found.reservations) == (20, 3000, ["r1", "r2"])


def test_a_request_without_a_row_counts_in_full() -> None:
    found = difference(Books.of(ROWS), [*MADE, Produced("r3", "chat", 7, 2)])
    assert (found.tokens, found.reservations) == (9, ["r3"])


def test_a_row_without_a_request_counts_in_full_with_its_money() -> None:
    found = difference(Books.of(ROWS), MADE[:1])
    assert (found.tokens, found.cost_nanos) == (25, 6000)


def test_a_nano_dollar_too_much_is_a_difference() -> None:
    found = difference(Books.of([row("r1", 10, 5, cost_nanos=4501)]), MADE[:1])
    assert (found.tokens, found.cost_nanos) == (0, 1)
    assert found


def test_attempts_at_one_reservation_are_added_up() -> None:
    attempts = [Produced("r1", "chat", 0, 0), MADE[0]]
    assert not difference(Books.of(ROWS[:1]), attempts)


def test_cached_tokens_are_compared_too() -> None:
    found = difference(Books.of(ROWS[:1]), [Produced("r1", "chat", 10, 5, cached=4)])
    assert found.tokens == 4
    assert found.cost_nanos == 300


def test_held_per_used_is_rounded_to_thousandths() -> None:
    assert Account(prompt=2, completion=1, tokens_held=2).held_per_used_milli == 667
    assert Books.of(ROWS).total.held_per_used_milli == 2000
    assert Account().held_per_used_milli == 0


def test_a_voided_row_holds_nothing_for_what_was_used() -> None:
    voided = Event(
        kind=EventKind.VOIDED,
        reservation="r9",
        organisation="acme",
        team=None,
        key="k1",
        model="chat",
        lane="realtime",
        occurred_at_ms=0,
        usage=Usage(0, 0),
        charge=Charge(),
        amounts=(),
        price=PRICE,
        tokens_held=500,
        job_deadline_ms=0,
    )
    assert Books.of([*ROWS, voided]).total.held_per_used_milli == 2000
