"""The template of definitions: complete, filled in by its parsed form, and refused where it is not as shipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penstock.adapters.rabbitmq.topology import KINDS, Bounds, fill, queue_name
from penstock.errors import ConfigurationError

TEMPLATE = (Path(__file__).parents[3] / "config" / "rabbitmq" / "definitions.json").read_text()
BOUNDS = Bounds(ready_bytes_max=1_000, deliveries=3)


def test_each_shard_of_a_model_has_a_queue_and_a_binding_of_its_own() -> None:
    filled = fill(TEMPLATE, vhost="penstock", models=["a/b", "m"], shards=2, bounds=BOUNDS, users=())
    names = [queue["name"] for queue in filled["queues"]]
    jobs = ["jobs.a_2fb.standard.0", "jobs.a_2fb.standard.1", "jobs.m.standard.0", "jobs.m.standard.1"]
    assert names == ["dead", "parked.5s", "parked.30s", "results", *jobs]
    bound = {(one["source"], one["destination"], one["routing_key"]) for one in filled["bindings"]}
    assert ("penstock.jobs", "jobs.a_2fb.standard.1", "jobs.a_2fb.standard.1") in bound
    assert len(bound) == 8


def test_bounds_are_integers_where_the_template_has_places() -> None:
    filled = fill(TEMPLATE, vhost="v", models=["m"], shards=1, bounds=BOUNDS, users=())
    jobs = next(one for one in filled["policies"] if one["name"] == "penstock-jobs")["definition"]
    assert (jobs["delivery-limit"], jobs["max-length-bytes"]) == (3, 1_000)
    assert (jobs["dead-letter-strategy"], jobs["overflow"]) == ("at-least-once", "reject-publish")
    assert all(one["vhost"] == "v" for kind in KINDS[2:] for one in filled[kind])


def test_users_without_a_password_are_left_out_with_their_permissions() -> None:
    filled = fill(TEMPLATE, vhost="v", models=[], shards=1, bounds=BOUNDS, users=["penstock_worker"])
    assert [one["name"] for one in filled["users"]] == ["penstock_worker"]
    assert [one["user"] for one in filled["permissions"]] == ["penstock_worker"]


def test_no_user_may_configure_anything() -> None:
    for one in json.loads(TEMPLATE)["permissions"]:
        assert one["configure"] == "^$"


def test_models_that_would_share_a_queue_are_refused() -> None:
    assert queue_name("a/b") == queue_name("a_2fb")
    with pytest.raises(ConfigurationError, match="share the queue"):
        fill(TEMPLATE, vhost="v", models=["a/b", "a_2fb"], shards=1, bounds=BOUNDS, users=())


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("{", "restore the file"),
        (json.dumps({"vhosts": []}), "users, permissions"),
        (TEMPLATE.replace('"{deliveries}"', '"{delivery}"'), r"\{delivery\} is no place"),
    ],
)
def test_a_template_that_is_not_as_shipped_is_refused(template: str, found: str) -> None:
    with pytest.raises(ConfigurationError, match=found):
        fill(template, vhost="v", models=["m"], shards=1, bounds=BOUNDS, users=())
