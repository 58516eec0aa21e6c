"""Rates between two looks at the metrics, whatever began anew or appeared between them."""

from __future__ import annotations

import pytest

from penstock.adapters.observing.reading import added
from penstock.errors import StoreUnavailable
from penstock.lanes.activity import Activity, Rates, Samples, activity
from penstock.lanes.waiting import Waiting

REQUESTS = (
    'penstock_requests_total{{organisation="{0}",model="m",route="r",lane="realtime",outcome="ok",'
    'status_class="{1}"}} {2}\n'
)
TOKENS = 'penstock_used_tokens_total{{organisation="acme",model="m",lane="realtime",token_type="{0}"}} {1}\n'
FIRST = 'penstock_first_token_duration_seconds_bucket{{model="m",route="r",lane="realtime",le="{0}"}} {1}\n'


def looked(before: str, after: str, **known: object) -> Activity:
    arguments: dict[str, object] = {"seconds": 2.0, "queues": {}, "held": {}, **known}
    return activity(samples(before), samples(after), **arguments)  # type: ignore[arg-type]


def samples(text: str) -> Samples:
    return added([text])


def of(every: tuple[Rates, ...], name: str) -> Rates:
    return next(rates for rates in every if rates.name == name)


def test_counters_are_rates_over_the_time_between() -> None:
    before = REQUESTS.format("acme", "2xx", 10) + TOKENS.format("prompt", 100)
    after = REQUESTS.format("acme", "2xx", 14) + REQUESTS.format("acme", "5xx", 2) + TOKENS.format("prompt", 160)
    after += TOKENS.format("completion", 40) + TOKENS.format("cached", 60)
    found = looked(before, after)
    rates = of(found.lanes, "realtime")
    assert (rates.requests, rates.failed, rates.tokens) == (3.0, 1.0, 50.0)  # cached is a part of prompt
    assert of(found.tenants, "acme").requests == 3.0


def test_a_process_that_began_anew_counts_from_zero() -> None:
    found = looked(REQUESTS.format("acme", "2xx", 1000), REQUESTS.format("acme", "2xx", 6))
    assert of(found.tenants, "acme").requests == 3.0


def test_pages_of_several_processes_are_added_up() -> None:
    page = REQUESTS.format("acme", "2xx", 4)
    ((key, value),) = added([page, page, "process_open_fds 3\n"]).items()
    assert (key[0], value) == ("penstock_requests_total", 8.0)


def test_the_first_token_is_estimated_from_what_came_between_the_looks() -> None:
    before = FIRST.format("0.1", 100) + FIRST.format("0.2", 100) + FIRST.format("+Inf", 100)
    after = FIRST.format("0.1", 100) + FIRST.format("0.2", 110) + FIRST.format("+Inf", 110)
    after += REQUESTS.format("acme", "2xx", 1)
    assert of(looked(before, after).models, "m").first_s == pytest.approx((0.15, 0.195))
    assert of(looked(after, after).models, "m").first_s is None


def test_models_and_organisations_without_a_request_are_there() -> None:
    found = looked("", "", queues={"idle": Waiting(waiting_jobs=3)}, held={"quiet": (1, 50)})
    assert [rates.name for rates in found.models] == ["idle"]
    assert [rates.name for rates in found.tenants] == ["quiet"]
    assert {rates.name for rates in found.lanes} == {"realtime", "queue"}


def test_an_upstream_is_up_if_any_process_says_so() -> None:
    healthy = (
        'penstock_upstream_healthy{model="m",upstream="a"} 1\npenstock_upstream_healthy{model="m",upstream="b"} 0\n'
    )
    assert looked("", healthy).healthy == {"m": (1, 2)}


def test_a_page_of_something_else_is_refused() -> None:
    with pytest.raises(StoreUnavailable, match="no metrics page"):
        added(["<html>hello</html>"])
