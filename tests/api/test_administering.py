"""``/admin/v1`` over a real database: who may change what, that nobody overwrites another, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from penstock.adapters.sql.audit_log import entries
from penstock.adapters.sql.keys import Keys
from penstock.api.application import application
from penstock.api.openapi import description
from tests.api.desk import NARROW, OWN, PLAIN, Desk
from tests.api.door import MODELS, NOW_MS, Answer, listening

ROOT = "/admin/v1"
ACME = f"{ROOT}/organisations/acme"
MINUTE = "acme/tokens/minute"


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    with listening(application(desk.services())) as (desk.port, _):
        yield desk
    desk.engine.dispose()


def test_a_key_without_the_right_administrates_nothing(desk: Desk) -> None:
    answer = desk.admin("GET", f"{ROOT}/organisations", token=PLAIN)
    assert (answer.status, answer.error()["code"]) == (403, "insufficient_permissions")


def test_an_organisations_administrator_sees_no_other(desk: Desk) -> None:
    assert [each["name"] for each in _data(desk.admin("GET", f"{ROOT}/organisations", token=OWN))] == ["acme"]
    for path in ("", "/keys", "/limits", "/teams"):
        foreign = desk.admin("GET", f"{ROOT}/organisations/globex{path}", token=OWN)
        unknown = desk.admin("GET", f"{ROOT}/organisations/nobody{path}", token=OWN)
        assert foreign.status == unknown.status == 404
        assert foreign.body == unknown.body
    assert desk.admin("GET", f"{ROOT}/audit-log?organisation=globex", token=OWN).status == 404


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", f"{ROOT}/organisations", {"name": "new"}),
        ("PATCH", ACME, {"reserve": "learned"}),
        ("DELETE", ACME, None),
        ("POST", f"{ACME}/limits", {"limit": "5 requests/minute"}),
        ("PATCH", f"{ACME}/limits/{MINUTE}", {"cap": 9}),
        ("DELETE", f"{ACME}/limits/{MINUTE}", None),
        ("POST", f"{ROOT}/prices", {"model": "chat-small", "prompt_picos": 1, "completion_picos": 1}),
    ],
)
def test_only_the_platform_changes_what_an_organisation_may_use(desk: Desk, method: str, path: str, body: Any) -> None:
    assert desk.admin(method, path, body, token=OWN, tag="*").status == 403
    assert {each.actor for each in entries(desk.engine)} == {"file", "ops"}


def test_a_new_key_is_shown_once_and_works_at_once(desk: Desk) -> None:
    made = desk.made(f"{ACME}/keys", {"name": "ci", "team": None}, token=OWN)
    assert desk.ask("GET", "/v1/models", token=made["key"]).status == 200
    assert "key" not in desk.admin("GET", f"{ACME}/keys/{made['id']}").json()
    assert made["creator"] == "acme/own"
    assert made["key"] not in str(entries(desk.engine))


def test_nobody_mints_a_key_wider_than_their_own(desk: Desk) -> None:
    narrow = {"models": ["chat-small"], "cost_nanos_max": 500}
    assert desk.admin("POST", f"{ACME}/keys", narrow, token=NARROW).status == 201
    for wider in (
        narrow | {"models": None},
        narrow | {"models": ["meta-llama/Llama-3.1-8B-Instruct"]},
        narrow | {"cost_nanos_max": 501},
        narrow | {"cost_nanos_max": None},
        narrow | {"admin": "platform"},
    ):
        assert desk.admin("POST", f"{ACME}/keys", wider, token=NARROW).status == 403, wider


def test_nobody_widens_a_key_or_takes_over_a_wider_one(desk: Desk) -> None:
    made = desk.made(f"{ACME}/keys", {"models": ["chat-small"], "cost_nanos_max": 500}, token=NARROW)
    path = f"{ACME}/keys/{made['id']}"
    assert desk.admin("PATCH", path, {"cost_nanos_max": 501}, token=NARROW, tag="*").status == 403
    assert desk.admin("PATCH", f"{ACME}/keys/narrow", {"models": None}, token=NARROW, tag="*").status == 403
    assert desk.admin("POST", f"{ACME}/keys/plain/rotate", {}, token=NARROW).status == 403  # its secret would be shown
    assert desk.admin("DELETE", f"{ACME}/keys/root", token=OWN).status == 403
    assert desk.admin("POST", f"{path}/rotate", {}, token=NARROW).status == 200


def test_what_a_key_made_narrows_with_it(desk: Desk) -> None:
    made = desk.made(f"{ACME}/keys", {"models": ["chat-small"], "cost_nanos_max": 400}, token=NARROW)
    narrowed = desk.admin("PATCH", f"{ACME}/keys/narrow", {"cost_nanos_max": 100, "routes": ["jobs"]}, tag="*")
    assert narrowed.status == 200
    key = desk.governing.current["acme"].keys[made["id"]]
    assert (key.cost_nanos_max, key.routes) == (100, frozenset({"jobs"}))
    assert desk.ask("GET", "/v1/models", token=made["key"]).status == 403


def test_a_revoked_key_is_refused_at_once_also_as_an_administrator(desk: Desk) -> None:
    assert desk.admin("DELETE", f"{ACME}/keys/own").json()["revoked_at_ms"] == NOW_MS
    assert desk.admin("GET", f"{ROOT}/organisations", token=OWN).status == 401
    assert desk.admin("POST", f"{ACME}/keys/own/rotate", {}).status == 409


def test_of_two_administrators_the_second_is_told_that_the_first_was_there(desk: Desk) -> None:
    path = f"{ACME}/limits/{MINUTE}"
    tag = desk.admin("GET", path).headers["etag"]
    assert desk.admin("PATCH", path, {"cap": 100}).status == 428
    assert desk.admin("PATCH", path, {"cap": 100}, tag=tag).status == 200
    answer = desk.admin("PATCH", path, {"cap": 300}, tag=tag)
    assert answer.status == 412
    assert desk.admin("GET", path).json()["cap"] == 100
    assert desk.admin("DELETE", path, tag=tag).status == 412


def test_a_changed_cap_is_what_the_quota_counts_against(desk: Desk) -> None:
    assert desk.admin("PATCH", f"{ACME}/limits/{MINUTE}", {"cap": 7}, tag="*").status == 200
    (standing,) = [each for each in desk.store.inspected().limits if each.limit == MINUTE]
    assert standing.cap == 7
    (entry,) = entries(desk.engine, rows_max=1)
    assert (entry.actor, entry.before, entry.after) == ("key:acme/root", {"cap": 200_000}, {"cap": 7})


def test_what_the_file_owns_is_refused_with_the_fix(desk: Desk) -> None:
    globex = f"{ROOT}/organisations/globex"
    for method, path, body in (
        ("PATCH", globex, {"reserve": "learned"}),
        ("DELETE", globex, None),
        ("POST", f"{globex}/teams", {"name": "t"}),
        ("POST", f"{globex}/limits", {"limit": "1k tokens/day"}),
        (
            "POST",
            f"{ROOT}/prices",
            {"model": "meta-llama/Llama-3.1-8B-Instruct", "prompt_picos": 1, "completion_picos": 1},
        ),
    ):
        answer = desk.admin(method, path, body, tag="*")
        assert (answer.status, answer.error()["code"]) == (409, "managed_by_file"), (method, path)
        assert "managed_by: api" in str(answer.error()["message"])
    assert desk.admin("POST", f"{globex}/keys", {}).status == 201  # keys are never the file's


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/organisations", {"name": "new", "plan": "big"}),
        ("/organisations", {"name": "New"}),
        ("/organisations", {"name": "new", "limits": ["lots"]}),
        ("/organisations", {"name": "new", "results_ms": 1.0}),
        ("/organisations", {"name": "new", "results_ms": "1"}),
        ("/organisations", {"name": "new", "results_ms": True}),
        ("/organisations", []),
        ("/organisations", b"{"),
        ("/organisations", b'{"name": "\xff"}'),
        ("/organisations/acme/keys", {"secret": "x"}),
        ("/organisations/acme/keys", {"models": ["no-such-model"]}),
        ("/organisations/acme/keys", {"routes": ["admin"]}),
        ("/organisations/acme/keys", {"team": "no-such-team"}),
        ("/organisations/acme/limits", {"limit": "5 requests/minute", "team": "search", "key": "own"}),
        ("/organisations/acme/limits", {"limit": "5 requests/minute", "model": "no-such-model"}),
        ("/prices", {"model": "chat-small", "prompt_picos": -1, "completion_picos": 1}),
        ("/prices", {"model": "chat-small", "prompt_picos": 1, "completion_picos": 1, "valid_from_ms": 1}),
    ],
)
def test_what_cannot_be_meant_is_a_400_and_changes_nothing(desk: Desk, path: str, body: Any) -> None:
    before = Keys(desk.engine).version()
    answer = desk.admin("POST", ROOT + path, body)
    assert (answer.status, answer.error()["type"]) == (400, "invalid_request_error"), answer.body
    assert Keys(desk.engine).version() == before


@pytest.mark.parametrize("text", ["a\x00b", "\x1b[2J", "\u202eabc"])
def test_what_cannot_be_shown_is_the_name_of_nothing_and_is_kept_nowhere(desk: Desk, text: str) -> None:
    """PostgreSQL takes no NUL, and a terminal obeys what a list of keys would print."""
    named = quote(text)
    for path in (
        f"{ROOT}/organisations/{named}",
        f"{ACME}/keys/{named}",
        f"{ACME}/limits/{named}",
        f"/v1/jobs/{named}",
    ):
        assert desk.admin("GET", path).status == 404, path
    for query in (f"prices?model={named}", f"audit-log?subject={named}"):
        assert desk.admin("GET", f"{ROOT}/{query}").status == 400, query
    for body in ({"name": text}, {"models": ["chat-small", text]}):
        refused = desk.admin("POST", f"{ACME}/keys", body)
        assert (refused.status, "cannot be shown" in str(refused.error()["message"])) == (400, True)
    assert all(str(each["name"]).isprintable() for each in _data(desk.admin("GET", f"{ACME}/keys")))


def test_lists_come_in_pages_without_gaps(desk: Desk) -> None:
    for number in range(5):
        desk.made(f"{ROOT}/organisations", {"name": f"org-{number}"})
        desk.made(f"{ACME}/keys", {"name": str(number)})
    for path, count in ((f"{ROOT}/organisations", 7), (f"{ACME}/keys", 9), (f"{ROOT}/prices", 2)):
        found: list[str] = []
        query = "?limit=2"
        while query:
            page = desk.admin("GET", path + query).json()
            found += [str(each) for each in _listed(page)]
            query = f"?limit=2&cursor={page['next_cursor']}" if page["has_more"] else ""
        assert (len(found), len(set(found))) == (count, count), path
    assert desk.admin("GET", f"{ACME}/keys?limit=0").status == 400
    assert desk.admin("GET", f"{ACME}/keys?cursor=%21").status == 400
    assert desk.admin("GET", f"{ACME}/keys?page=2").status == 400


def test_the_audit_log_is_filtered_and_holds_before_and_after(desk: Desk) -> None:
    desk.admin("PATCH", ACME, {"overrun": "debt", "results_ms": 5}, tag="*")
    (entry,) = _data(desk.admin("GET", f"{ROOT}/audit-log?action=organisations.change&actor=key:acme/root"))
    assert (entry["before"]["overrun"], entry["after"]["overrun"]) == ("stop", "debt")
    assert _data(desk.admin("GET", f"{ROOT}/audit-log?end=2001-01-01")) == []
    assert len(_data(desk.admin("GET", f"{ROOT}/audit-log?limit=3"))) == 3


def test_a_removed_organisation_may_use_nothing_until_it_is_added_again(desk: Desk) -> None:
    desk.made(f"{ROOT}/organisations", {"name": "new", "limits": ["5 requests/minute"]})
    key = desk.made(f"{ROOT}/organisations/new/keys", {"admin": "organisation"})["key"]
    assert desk.admin("GET", f"{ROOT}/organisations/new", token=key).status == 200
    assert desk.admin("DELETE", f"{ROOT}/organisations/new").status == 204
    assert desk.admin("GET", f"{ROOT}/organisations/new").status == 404
    assert desk.admin("GET", f"{ROOT}/organisations/new", token=key).status == 403
    assert desk.governing.current["new"].models == {}
    desk.made(f"{ROOT}/organisations", {"name": "new"})
    assert desk.governing.current["new"].models == MODELS


def test_a_team_goes_with_its_limits_and_not_while_keys_belong_to_it(desk: Desk) -> None:
    desk.made(f"{ACME}/teams", {"name": "ops"}, token=OWN)
    limit = desk.made(f"{ACME}/limits", {"limit": "5 requests/minute", "team": "ops"}, token=OWN)
    key = desk.made(f"{ACME}/keys", {"team": "ops"}, token=OWN)
    assert desk.admin("DELETE", f"{ACME}/teams/ops", token=OWN).status == 409
    desk.admin("DELETE", f"{ACME}/keys/{key['id']}")
    assert desk.admin("DELETE", f"{ACME}/teams/ops", token=OWN).status == 204
    assert desk.admin("GET", f"{ACME}/limits/{limit['id']}").status == 404


def test_every_described_method_is_answered_and_no_other(desk: Desk) -> None:
    for path, methods in description()["paths"].items():
        if not path.startswith(ROOT):
            continue
        real = path.replace("{organisation}", "nobody").replace("{limit}", "a/b/c")
        for method in ("GET", "POST", "PATCH", "DELETE", "PUT"):
            status = desk.admin(method, real, {}, tag="*").status
            assert (status == 405) is (method.lower() not in methods), (method, path, status)


def _data(answer: Answer) -> list[dict[str, Any]]:
    assert answer.status == 200, answer.body
    return _listed(answer.json())


def _listed(page: dict[str, Any]) -> list[dict[str, Any]]:
    return list(page["data"])
