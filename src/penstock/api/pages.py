"""What clients can read: models, their usage, their quota. Always their own organisation's, by the key they show."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from penstock.api.administering import AdminPages
from penstock.api.answers import Page, json_answer
from penstock.api.headers import rate_headers
from penstock.api.instants import instant_ms, iso, to_ms
from penstock.api.jobs import JobPages
from penstock.api.openapi import description
from penstock.api.permissions import PERMISSIONS, Audience, Permission
from penstock.api.readable import check_request
from penstock.api.services import ModelCard, Services
from penstock.api.visitors import Visitor, VisitorPage
from penstock.config.notation import format_limit
from penstock.errors import Forbidden, InvalidRequest, NotFound, StoreUnavailable, Unauthenticated
from penstock.lanes.credentials import Credential
from penstock.lanes.inspecting import inspect
from penstock.ports import USAGE_GROUPS, UsageQuery, UsageRow
from penstock.quota.definitions import Key, Limit
from penstock.quota.operations import Inspect, Inspected, LimitStanding, NotReady, Reading


class Pages:
    """The pages and who may see them."""

    def __init__(self, services: Services, *, permissions: Mapping[str, Permission] = PERMISSIONS) -> None:
        self._services = services
        self._permissions = permissions
        self._job_pages = JobPages(services)
        self._admin_pages = AdminPages(services, self._administrator)

    def routes(self) -> list[Route]:
        """Every path beside the hot ones."""
        for_keys: dict[str, VisitorPage] = {
            "/v1/models": self.models,
            "/v1/models/{name:path}": self.model,
            "/v2/models/{name:path}/ready": self.generic_ready,
            "/v2/models/{name:path}": self.generic,
            "/v1/usage": self.usage,
            "/v1/quota": self.quota,
            "/v1/jobs": self._job_pages.all,
            "/v1/jobs/{id}/events": self._job_pages.events,
        }
        for_anyone: dict[str, Page] = {
            "/health": live,
            "/health/live": live,
            "/v2/health/live": live,
            "/health/ready": self.ready,
            "/v2/health/ready": self.ready,
            "/openapi.json": openapi,
        }
        routes = [Route(path, self._for_key(path, page)) for path, page in for_keys.items()]
        job = "/v1/jobs/{id}"
        routes.append(Route(job, self._for_key(job, self._job_pages.one), methods=["GET", "DELETE"]))
        routes += self._admin_pages.routes()
        return routes + [Route(path, self._for_anyone(path, page)) for path, page in for_anyone.items()]

    def _for_anyone(self, path: str, page: Page) -> Page:
        async def guarded(request: Request) -> Response:
            self._permitted(path, request, Audience.ANYONE)
            return await page(request)

        return guarded

    def _for_key(self, path: str, page: VisitorPage) -> Page:
        async def guarded(request: Request) -> Response:
            permission = self._permitted(path, request, Audience.KEY)
            visitor = await self._visitor(request)
            routes = visitor.key.routes
            if routes is not None and permission.route not in routes:
                raise Forbidden(f"this key's scope excludes {permission.route}; use a key whose routes include it")
            response = await page(request, visitor)
            response.raw_headers.extend(rate_headers(_readings(visitor)))
            return response

        return guarded

    def _permitted(self, path: str, request: Request, audience: Audience) -> Permission:
        permission = self._permissions.get(path)
        if permission is None or permission.audience is not audience:
            raise Forbidden("nobody may use this path: it has no declared permission")
        request.scope["penstock.record"].route = permission.route
        check_request(request)
        return permission

    async def _administrator(self, path: str, request: Request) -> Credential:
        """Whose request it is; what they may administrate is checked where the record is."""
        self._permitted(path, request, Audience.ADMINISTRATOR)
        credential, _ = await self._identified(request)
        return credential

    async def _visitor(self, request: Request) -> Visitor:
        credential, key = await self._identified(request)
        now_ms = self._services.clock.now_ms()
        standing = await self._services.quota.apply(
            Inspect(organisation=credential.organisation, caller_now_ms=now_ms, holds_max=0)
        )
        if not isinstance(standing, Inspected):
            raise StoreUnavailable("the quota store is not ready; try again")
        return Visitor(credential.organisation, key, standing)

    async def _identified(self, request: Request) -> tuple[Credential, Key]:
        credential = await self._credential(request)
        record = request.scope["penstock.record"]
        record.organisation = credential.organisation
        record.key = credential.key
        key = await self._services.keys.check(credential)
        if key is None:
            raise Unauthenticated("the key is not in force")
        record.team = key.team
        return credential, key

    async def _credential(self, request: Request) -> Credential:
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        credential = None
        if scheme.lower() == "bearer":
            token = shown.strip().encode("latin-1")
            credential = self._services.credentials.read(token)
            if credential is None and self._services.subjects is not None:
                credential = await self._services.subjects.read(token)
        if credential is None:
            raise Unauthenticated("neither a well-formed key nor a token in force")
        return credential

    async def ready(self, request: Request) -> Response:
        """Whether to send requests here; why not is told on the operations port only."""
        reasons = await self._services.readiness()
        return json_answer({"ready": not reasons}, status=503 if reasons else 200)

    async def models(self, request: Request, visitor: Visitor) -> Response:
        """The models that the key's scope includes."""
        cards = self._services.models.values()
        seen = [_card(card) for card in cards if visitor.key.models is None or card.id in visitor.key.models]
        return json_answer({"object": "list", "data": sorted(seen, key=lambda card: str(card["id"]))})

    async def model(self, request: Request, visitor: Visitor) -> Response:
        """One model; one outside the key's scope is not there."""
        return json_answer(_card(self._visible(request, visitor)))

    async def generic(self, request: Request, visitor: Visitor) -> Response:
        """One model as the Open Inference Protocol describes it; its tensors are the model server's to name."""
        card = self._visible(request, visitor)
        return json_answer({"name": card.id, "versions": [], "platform": "penstock", "inputs": [], "outputs": []})

    async def generic_ready(self, request: Request, visitor: Visitor) -> Response:
        """Whether requests to one model should be sent here."""
        card = self._visible(request, visitor)
        is_ready = not await self._services.readiness()
        return json_answer({"name": card.id, "ready": is_ready}, status=200 if is_ready else 503)

    def _visible(self, request: Request, visitor: Visitor) -> ModelCard:
        name = request.path_params["name"]
        card = self._services.models.get(name)
        if card is None or (visitor.key.models is not None and name not in visitor.key.models):
            raise NotFound(
                "there is no such model, or not for this key; /v1/models lists them",
                param="model",
                code="model_not_found",
            )
        return card

    async def usage(self, request: Request, visitor: Visitor) -> Response:
        """What the ledger holds of a range, and what is held at this moment, apart from it."""
        query = self._usage_query(request.query_params, visitor.organisation)
        rows = await self._services.ledger.usage(query)
        read = await inspect(self._services.quota, visitor.organisation, now_ms=visitor.standing.now_ms)
        if isinstance(read, NotReady):
            raise StoreUnavailable("the quota store is not ready; try again")
        holds = read.inspected.holds
        return json_answer(
            {
                "object": "list",
                "start": iso(query.start_ms),
                "end": iso(query.end_ms),
                "group_by": query.group_by,
                "data": [_row(query.group_by, row) for row in rows],
                "totals": _amounts(UsageRow.total(rows)),
                "held": {"requests": len(holds), "tokens": sum(hold.tokens_held for hold in holds)},
            }
        )

    def _usage_query(self, asked: Mapping[str, str], organisation: str) -> UsageQuery:
        unknown = set(asked) - {"start", "end", "group_by"}
        if unknown:
            raise InvalidRequest("usage takes start, end and group_by only", param=None)
        now = datetime.fromtimestamp(self._services.clock.now_ms() / 1000, UTC)
        month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        next_month = (month + timedelta(days=32)).replace(day=1)
        start_ms = instant_ms("start", asked["start"]) if "start" in asked else to_ms(month)
        end_ms = instant_ms("end", asked["end"]) if "end" in asked else max(to_ms(next_month), start_ms + 1)
        if end_ms <= start_ms:
            raise InvalidRequest("end: must be after start; the start is included, the end is not", param="end")
        days_max = self._services.bounds.usage_days_max
        if end_ms - start_ms > days_max * 86_400_000:
            raise InvalidRequest(f"end: more than {days_max} days after start; ask for less at a time", param="end")
        group_by = tuple(part.strip() for part in asked.get("group_by", "").split(",") if part.strip())
        if len(set(group_by)) != len(group_by) or not set(group_by) <= set(USAGE_GROUPS):
            raise InvalidRequest(f"group_by: takes any of {','.join(USAGE_GROUPS)}, each once", param="group_by")
        return UsageQuery(organisation=organisation, start_ms=start_ms, end_ms=end_ms, group_by=group_by)

    async def quota(self, request: Request, visitor: Visitor) -> Response:
        """Each limit that the key's requests fall under."""
        now_ms = visitor.standing.now_ms
        data = [_limit(limit, standing, now_ms) for limit, standing in visitor.limits()]
        return json_answer({"object": "list", "data": data})


async def live(request: Request) -> Response:
    """The process answers."""
    return json_answer({"live": True})


async def openapi(request: Request) -> Response:
    """The description of this API."""
    return json_answer(description())


def _readings(visitor: Visitor) -> list[Reading]:
    return [
        Reading(each.limit, each.cap, max(0, each.available), each.resets_in_ms)
        for limit, each in visitor.limits()
        if limit.model is None
    ]


def _card(card: ModelCard) -> dict[str, str | int]:
    return {
        "id": card.id,
        "object": "model",
        "created": card.created_s,
        "owned_by": card.owned_by,
        "context_window": card.context,
    }


def _row(group_by: tuple[str, ...], row: UsageRow) -> dict[str, Any]:
    return dict(zip(group_by, row.group, strict=True)) | _amounts(row)


def _amounts(row: UsageRow) -> dict[str, Any]:
    nanos = row.cost_nanos
    return {
        **row.sums,
        "total_tokens": row.prompt_tokens + row.completion_tokens,
        "cost_usd": f"{nanos // 10**9}.{nanos % 10**9:09d}",
    }


def _limit(limit: Limit, standing: LimitStanding, now_ms: int) -> dict[str, Any]:
    resets_at_ms = now_ms + standing.resets_in_ms if standing.resets_in_ms else None
    return {
        "id": standing.limit,
        "description": _sentence(limit),
        "metric": standing.metric,
        "kind": standing.kind,
        "model": limit.model,
        "cap": standing.cap,
        "used": standing.used,
        "held": standing.held,
        "available": standing.available,
        "resets_at": None if resets_at_ms is None else iso(resets_at_ms),
        "resets_at_ms": resets_at_ms,
    }


def _sentence(limit: Limit) -> str:
    parts = limit.owner.split(":")
    owner = f"organisation {parts[0]}" if len(parts) == 1 else f"{parts[1]} {parts[2]}"
    on_model = f", on model {limit.model}" if limit.model is not None else ""
    return f"{format_limit(limit)} for {owner}{on_model}"
