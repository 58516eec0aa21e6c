"""Who looks at a page: a key in force, and how its organisation stands."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from starlette.requests import Request
from starlette.responses import Response

from penstock.quota.definitions import Key, Limit
from penstock.quota.limits import parse_limit_id
from penstock.quota.operations import Inspected, LimitStanding


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who looks at a page, and how the organisation stands."""

    organisation: str
    key: Key
    standing: Inspected

    def limits(self) -> list[tuple[Limit, LimitStanding]]:
        """The limits that this key's requests fall under: the organisation's, its team's, its own."""
        owners = {self.organisation, f"{self.organisation}:key:{self.key.id}"}
        if self.key.team is not None:
            owners.add(f"{self.organisation}:team:{self.key.team}")
        found = [(replace(parse_limit_id(each.limit), cap=each.cap), each) for each in self.standing.limits]
        return [(limit, standing) for limit, standing in found if limit.owner in owners]


VisitorPage = Callable[[Request, Visitor], Awaitable[Response]]
