"""The pages under ``/admin/v1``: organisations, teams, keys, limits, prices, the audit log, and what is erased.

Each look and each change is one transaction, in which the right to it is checked as well. A record's ``ETag`` is a
digest of what it says; a PATCH must name the one that it was made from in ``If-Match``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from penstock.api import admin_bodies as bodies
from penstock.api.admin_calls import Call, answered, page_of, read_whole
from penstock.api.admin_keys import KeyPages
from penstock.api.admin_organisations import OrganisationPages
from penstock.api.admin_views import audit_view, erased_view, price_view
from penstock.api.administrators import Administrator
from penstock.api.answers import Page, json_answer
from penstock.api.instants import instant_ms
from penstock.api.services import Services
from penstock.errors import InvalidRequest, Unconditional
from penstock.lanes.administering import AuditQuery, PriceRecord, Records
from penstock.lanes.credentials import Credential
from penstock.quota.definitions import Price

ROOT = "/admin/v1"
_ORGANISATION = f"{ROOT}/organisations/{{organisation}}"
_AUDIT_FILTERS = frozenset({"organisation", "actor", "action", "subject", "start", "end"})

Handler = Callable[[Call], Awaitable[Response]]
Guard = Callable[[str, Request], Awaitable[Credential]]


class AdminPages(OrganisationPages, KeyPages):
    """The pages.

    Args:
        guard: Finds out whose request it is, or refuses it.
    """

    def __init__(self, services: Services, guard: Guard) -> None:
        super().__init__(services)
        self._guard = guard

    def routes(self) -> list[Route]:
        """Every path, with the methods that it answers."""
        pages: dict[str, dict[str, Handler]] = {
            f"{ROOT}/organisations": {"GET": self.organisations, "POST": self.create_organisation},
            _ORGANISATION: {
                "GET": self.organisation,
                "PATCH": self.change_organisation,
                "DELETE": self.remove_organisation,
            },
            f"{_ORGANISATION}/teams": {"GET": self.teams, "POST": self.create_team},
            f"{_ORGANISATION}/teams/{{team}}": {"DELETE": self.remove_team},
            f"{_ORGANISATION}/keys": {"GET": self.keys, "POST": self.create_key},
            f"{_ORGANISATION}/keys/{{key}}": {"GET": self.key, "PATCH": self.change_key, "DELETE": self.revoke_key},
            f"{_ORGANISATION}/keys/{{key}}/rotate": {"POST": self.rotate_key},
            f"{_ORGANISATION}/limits": {"GET": self.limits, "POST": self.create_limit},
            f"{_ORGANISATION}/limits/{{limit:path}}": {
                "GET": self.limit,
                "PATCH": self.change_limit,
                "DELETE": self.remove_limit,
            },
            f"{_ORGANISATION}/content": {"DELETE": self.erase},
            f"{_ORGANISATION}/jobs/{{job}}/content": {"DELETE": self.erase},
            f"{ROOT}/prices": {"GET": self.prices, "POST": self.create_price},
            f"{ROOT}/audit-log": {"GET": self.audit_log},
        }
        return [Route(path, self._page(path, handlers), methods=list(handlers)) for path, handlers in pages.items()]

    def _page(self, path: str, handlers: Mapping[str, Handler]) -> Page:
        async def page(request: Request) -> Response:
            credential = await self._guard(path, request)
            await self.look(credential, lambda records, who: None)  # refuses before anything is read or locked
            handler = handlers["GET" if request.method == "HEAD" else request.method]
            body = await read_whole(request)
            tag = request.headers.get("if-match")
            call = Call(
                credential,
                request.path_params,
                request.query_params,
                body,
                None if tag is None else tag.removeprefix("W/").strip('"'),
            )
            if request.method == "PATCH" and tag is None:
                raise Unconditional("send If-Match with the ETag that you read, so that nobody's change gets lost")
            return await handler(call)

        return page

    async def prices(self, call: Call) -> Response:
        """The history of one model, or of all."""
        count, after = bodies.asked(call.query, ("model",))
        begin = (str(after[0]), int(after[1])) if len(after) == 2 and type(after[1]) is int else ("", -1)
        model = call.query.get("model")
        found = await self.look(
            call.credential, lambda records, who: records.prices(model, after=begin, count_max=count + 1)
        )
        return page_of(found, count, price_view, lambda each: bodies.cursor(each.model, each.since_ms))

    async def create_price(self, call: Call) -> Response:
        """From a moment on, now if none is given. What is held already keeps the price of its reserve."""
        body = bodies.read_body(call.body, bodies.NewPrice)
        now_ms = self.now_ms()
        since_ms = now_ms if body.valid_from_ms is None else body.valid_from_ms
        if since_ms < now_ms:
            raise InvalidRequest("valid_from_ms: lies in the past, and history is not rewritten", param="valid_from_ms")
        price = Price(
            prompt_picos=body.prompt_picos,
            cached_picos=body.prompt_picos if body.cached_picos is None else body.cached_picos,
            completion_picos=body.completion_picos,
            request_picos=body.request_picos,
        )
        record = PriceRecord(model=body.model, since_ms=since_ms, price=price, in_force=False)

        def do(records: Records, who: Administrator) -> PriceRecord:
            who.check_platform()
            return records.create_price(record, who.by(now_ms))

        return answered(await self.change(call, do), price_view, status=201)

    async def audit_log(self, call: Call) -> Response:
        """Who changed what, newest first."""
        count, query = audit_query(call.query)

        def ask(records: Records, who: Administrator) -> Sequence[Any]:
            if query.organisation is not None:
                who.check_reach(query.organisation)
            own = None if who.is_platform else who.stored.organisation
            return records.audit(replace(query, organisation=query.organisation or own, count_max=count + 1))

        found = await self.look(call.credential, ask)
        return page_of(found, count, audit_view, lambda each: bodies.cursor(each.id))

    async def erase(self, call: Call) -> Response:
        """Stored prompts, results and answers, of the organisation or of one job."""
        name, job = call.path["organisation"], call.path.get("job")

        def ask(records: Records, who: Administrator) -> Administrator:
            records.organisation(name)
            return who

        who = await self.see(call, ask)
        done = await self.administration.erase(name, job, who.by(self.now_ms()))
        return json_answer(erased_view(done))


def audit_query(asked: Mapping[str, str]) -> tuple[int, AuditQuery]:
    """Which entries, and how many in a page."""
    count, after = bodies.asked(asked, _AUDIT_FILTERS)
    before_id = after[0] if len(after) == 1 and type(after[0]) is int else None
    return count, AuditQuery(
        organisation=asked.get("organisation"),
        actor=asked.get("actor"),
        action=asked.get("action"),
        subject=asked.get("subject"),
        from_ms=instant_ms("start", asked["start"]) if "start" in asked else None,
        until_ms=instant_ms("end", asked["end"]) if "end" in asked else None,
        before_id=before_id,
    )
