"""What clients can read of models, usage and quota: their own organisation's, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.ports import UsageRow
from tests.api.door import NARROW_TOKEN, NOW_MS, OTHER_TOKEN, TEAM_TOKEN, TOKEN, WRONG_TOKENS, Door

NOVEMBER_MS, DECEMBER_MS = 1_761_955_200_000, 1_764_547_200_000
DAY_MS = 86_400_000


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/chat-small", "/v1/usage", "/v1/quota"])
@pytest.mark.parametrize("why", [*WRONG_TOKENS, "missing"])
def test_no_page_opens_without_a_key_in_force(door: Door, path: str, why: str) -> None:
    answer = door.ask("GET", path, token=WRONG_TOKENS.get(why))
    assert (answer.status, answer.error()["code"]) == (401, "invalid_api_key")
    assert door.watcher.last().outcome == "unauthenticated"


def test_models_are_those_of_the_keys_scope(door: Door) -> None:
    models: Any = door.ask("GET", "/v1/models", token=NARROW_TOKEN).json()
    assert [model["id"] for model in models["data"]] == ["chat-small"]
    assert door.ask("GET", "/v1/models/chat-small", token=NARROW_TOKEN).status == 200
    for name in ("meta-llama/Llama-3.1-8B-Instruct", "nothing"):
        answer = door.ask("GET", f"/v1/models/{name}", token=NARROW_TOKEN)
        assert (answer.status, answer.error()["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("path", ["/v1/usage", "/v1/quota"])
def test_a_key_whose_routes_exclude_a_page_is_forbidden(door: Door, path: str) -> None:
    assert door.ask("GET", path, token=NARROW_TOKEN).status == 403


def test_pages_carry_the_same_rate_headers(door: Door) -> None:
    answer = door.ask("GET", "/v1/models")
    assert answer.headers["x-ratelimit-limit-requests"] == "600"
    assert answer.headers["x-ratelimit-remaining-tokens"] == "200000"
    assert answer.headers["x-request-id"]


def test_usage_is_this_months_by_default_and_of_ones_own_organisation(door: Door) -> None:
    for token, organisation in ((TOKEN, "acme"), (OTHER_TOKEN, "globex")):
        assert door.ask("GET", "/v1/usage", token=token).status == 200
        asked = door.ledger.asked[-1]
        assert (asked.organisation, asked.start_ms, asked.end_ms) == (organisation, NOVEMBER_MS, DECEMBER_MS)


def test_usage_shows_groups_totals_and_what_is_held_apart(door: Door) -> None:
    door.ledger.rows = [
        UsageRow(("2025-11-01", None), 2, 100, 20, 30, 1_500_000_001),
        UsageRow(("2025-11-02", "search"), 1, 1, 0, 2, 3),
    ]
    usage: Any = door.ask("GET", "/v1/usage?group_by=day,team").json()
    assert usage["object"] == "list"
    assert usage["data"][0] == {
        "day": "2025-11-01",
        "team": None,
        "requests": 2,
        "prompt_tokens": 100,
        "cached_tokens": 20,
        "completion_tokens": 30,
        "total_tokens": 130,
        "cost_nanos": 1_500_000_001,
        "cost_usd": "1.500000001",
    }
    assert usage["totals"]["requests"] == 3
    assert usage["totals"]["total_tokens"] == 133
    assert usage["totals"]["cost_usd"] == "1.500000004"
    assert usage["held"] == {"requests": 0, "tokens": 0}
    assert (usage["start"], usage["end"]) == ("2025-11-01T00:00:00Z", "2025-12-01T00:00:00Z")


@pytest.mark.parametrize(
    ("query", "start_ms", "end_ms"),
    [
        ("start=2025-11-02&end=2025-11-03", NOVEMBER_MS + DAY_MS, NOVEMBER_MS + 2 * DAY_MS),
        ("start=1761955200&end=1761955201", NOVEMBER_MS, NOVEMBER_MS + 1000),
        ("start=2025-11-01T01:00:00%2B01:00&end=2025-11-02T00:00:00Z", NOVEMBER_MS, NOVEMBER_MS + DAY_MS),
        ("end=2025-11-02", NOVEMBER_MS, NOVEMBER_MS + DAY_MS),
    ],
)
def test_a_range_is_dates_times_or_unix_seconds(door: Door, query: str, start_ms: int, end_ms: int) -> None:
    assert door.ask("GET", f"/v1/usage?{query}").status == 200
    assert (door.ledger.asked[0].start_ms, door.ledger.asked[0].end_ms) == (start_ms, end_ms)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("start=yesterday", "start"),
        ("start=99999999999999999999", "start"),
        ("start=-1", "start"),
        ("start=2025-11-02&end=2025-11-02", "end"),
        ("start=2024-01-01&end=2025-11-01", "end"),
        ("group_by=organisation", "group_by"),
        ("group_by=day,day", "group_by"),
        ("organisation=globex", None),
    ],
)
def test_a_range_or_group_that_cannot_be_is_refused(door: Door, query: str, param: str | None) -> None:
    answer = door.ask("GET", f"/v1/usage?{query}")
    assert (answer.status, answer.error()["param"]) == (400, param)
    assert not door.ledger.asked


def test_quota_says_each_limit_of_the_key_in_a_sentence(door: Door) -> None:
    door.chat()
    quota: Any = door.ask("GET", "/v1/quota").json()
    by_id = {limit["id"]: limit for limit in quota["data"]}
    month = by_id["acme/tokens/month"]
    assert month["description"] == "50M tokens/month for organisation acme"
    assert (month["used"], month["held"], month["cap"]) == (13, 0, 50_000_000)
    assert month["available"] == 50_000_000 - 13
    assert month["resets_at"] == "2025-12-01T00:00:00Z"
    assert month["resets_at_ms"] == DECEMBER_MS > NOW_MS
    assert by_id["acme/concurrency/concurrent"]["resets_at"] is None
    assert not any(limit.startswith("acme:team") for limit in by_id)


def test_a_teams_key_sees_the_teams_limits_and_the_organisations(door: Door) -> None:
    quota: Any = door.ask("GET", "/v1/quota", token=TEAM_TOKEN).json()
    descriptions = [limit["description"] for limit in quota["data"]]
    assert "20M tokens/month for team search" in descriptions
    assert "50M tokens/month for organisation acme" in descriptions


def test_pages_are_a_503_while_the_store_is_down(door: Door) -> None:
    door.store.is_down = True
    answer = door.ask("GET", "/v1/quota")
    assert (answer.status, answer.headers["retry-after"]) == (503, "2")
    assert door.watcher.last().outcome == "unavailable"
