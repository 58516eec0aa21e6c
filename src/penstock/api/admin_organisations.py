"""Organisations, their teams and their limits, as administrators see and change them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from penstock.api import admin_bodies as bodies
from penstock.api.admin_calls import AdminBase, Call, answered, page_of
from penstock.api.admin_views import limit_view, organisation_view, team_view
from penstock.api.administrators import Administrator
from penstock.api.answers import json_answer
from penstock.lanes.administering import LimitRecord, OrganisationRecord, Records


class OrganisationPages(AdminBase):
    """The pages of what an organisation is."""

    async def organisations(self, call: Call) -> Response:
        """A page of them; for an organisation's administrator the one."""
        count, after = bodies.asked(call.query)

        def ask(records: Records, who: Administrator) -> Sequence[OrganisationRecord]:
            if who.is_platform:
                return records.organisations(after=_text(after), count_max=count + 1)
            return [records.organisation(who.stored.organisation)]

        found = await self.look(call.credential, ask)
        return page_of(found, count, organisation_view, lambda each: bodies.cursor(each.name))

    async def create_organisation(self, call: Call) -> Response:
        """Add one, with its limits."""
        body = bodies.read_body(call.body, bodies.NewOrganisation)
        limits = [bodies.read_limit(each, owner=body.name) for each in body.limits]
        record = OrganisationRecord(
            name=body.name,
            managed_by="api",
            reserve=body.reserve,
            overrun=body.overrun,
            created_at_ms=self.now_ms(),
            results_ms=body.results_ms,
            answers_ms=body.answers_ms,
        )

        def do(records: Records, who: Administrator) -> OrganisationRecord:
            who.check_platform()
            return records.create_organisation(record, limits, who.by(record.created_at_ms))

        return answered(await self.change(call, do), organisation_view, status=201)

    async def organisation(self, call: Call) -> Response:
        """One."""
        name = call.path["organisation"]
        return answered(await self.see(call, lambda records, who: records.organisation(name)), organisation_view)

    async def change_organisation(self, call: Call) -> Response:
        """Policy and retention."""
        fields = bodies.read_body(call.body, bodies.OrganisationChange).given()

        def do(records: Records, who: Administrator) -> OrganisationRecord:
            who.check_platform()
            return records.change_organisation(call.path["organisation"], fields, who.by(self.now_ms(), call.tag))

        return answered(await self.change(call, do), organisation_view)

    async def remove_organisation(self, call: Call) -> Response:
        """It may use nothing more. Its figures stay, and its texts until they are erased or their time is over."""

        def do(records: Records, who: Administrator) -> None:
            who.check_platform()
            records.remove_organisation(call.path["organisation"], who.by(self.now_ms(), call.tag))

        await self.change(call, do)
        return Response(status_code=204)

    # --- teams -----------------------------------------------------------------------------------------------

    async def teams(self, call: Call) -> Response:
        """All of them, in one page."""
        found = await self.see(call, lambda records, who: records.teams(call.path["organisation"]))
        return page_of(found, len(found), team_view, str)

    async def create_team(self, call: Call) -> Response:
        """Add one."""
        body = bodies.read_body(call.body, bodies.NewTeam)
        name = call.path["organisation"]
        made = await self.change(call, lambda records, who: records.create_team(name, body.name, who.by(self.now_ms())))
        return json_answer(team_view(made), status=201)

    async def remove_team(self, call: Call) -> Response:
        """With its limits."""
        name, team = call.path["organisation"], call.path["team"]
        await self.change(call, lambda records, who: records.remove_team(name, team, who.by(self.now_ms())))
        return Response(status_code=204)

    # --- limits ----------------------------------------------------------------------------------------------

    async def limits(self, call: Call) -> Response:
        """All of an organisation, its teams and keys, in one page."""
        found = await self.see(call, lambda records, who: records.limits(call.path["organisation"]))
        return page_of(found, len(found), limit_view, lambda each: each.id)

    async def limit(self, call: Call) -> Response:
        """One."""
        name, limit = call.path["organisation"], call.path["limit"]
        return answered(await self.see(call, lambda records, who: records.limit(name, limit)), limit_view)

    async def create_limit(self, call: Call) -> Response:
        """Add one. Only the platform's administrators limit an organisation as a whole."""
        body = bodies.read_body(call.body, bodies.NewLimit)
        name = call.path["organisation"]
        limit = bodies.read_limit(body.limit, owner=bodies.owner_of(name, body), model=body.model)
        record = LimitRecord(organisation=name, limit=limit)

        def do(records: Records, who: Administrator) -> LimitRecord:
            _check_owner(who, record)
            return records.create_limit(record, who.by(self.now_ms()))

        return answered(await self.change(call, do), limit_view, status=201)

    async def change_limit(self, call: Call) -> Response:
        """Its cap."""
        body = bodies.read_body(call.body, bodies.LimitChange)
        name, limit = call.path["organisation"], call.path["limit"]

        def do(records: Records, who: Administrator) -> LimitRecord:
            _check_owner(who, records.limit(name, limit))
            return records.change_cap(name, limit, body.cap, who.by(self.now_ms(), call.tag))

        return answered(await self.change(call, do), limit_view)

    async def remove_limit(self, call: Call) -> Response:
        """Take it away."""
        name, limit = call.path["organisation"], call.path["limit"]

        def do(records: Records, who: Administrator) -> None:
            _check_owner(who, records.limit(name, limit))
            records.remove_limit(name, limit, who.by(self.now_ms(), call.tag))

        await self.change(call, do)
        return Response(status_code=204)


def _check_owner(who: Administrator, record: LimitRecord) -> None:
    """Only the platform limits a whole organisation, or frees it."""
    if record.limit.owner == record.organisation:
        who.check_platform()


def _text(after: list[Any]) -> str:
    return after[0] if len(after) == 1 and type(after[0]) is str else ""
