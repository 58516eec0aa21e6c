"""What every page of administrators is made of: the call, the right to it, one transaction, and the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from penstock.api.administrators import Administrator, administrator
from penstock.api.answers import json_answer
from penstock.api.services import Services
from penstock.errors import StoreUnavailable, TooLarge, UnsupportedMedia
from penstock.lanes.administering import Administration, Records, tag_of
from penstock.lanes.credentials import Credential

T = TypeVar("T")
BODY_BYTES_MAX = 65_536


@dataclass(frozen=True, slots=True)
class Call:
    """A request of somebody whose key is in force.

    Args:
        tag: Of ``If-Match``, without quotes; None if it was not sent.
    """

    credential: Credential
    path: Mapping[str, Any]
    query: Mapping[str, str]
    body: bytes
    tag: str | None


class AdminBase:
    """What the pages share."""

    def __init__(self, services: Services) -> None:
        self.services = services

    async def look(self, credential: Credential, ask: Callable[[Records, Administrator], T]) -> T:
        """Look at something that is of no organisation."""
        now_ms = self.services.clock.now_ms()
        return await self.administration.read(
            lambda records: ask(records, administrator(records, credential, now_ms=now_ms))
        )

    async def see(self, call: Call, ask: Callable[[Records, Administrator], T]) -> T:
        """Look at something of the organisation that the path names."""
        return await self.look(call.credential, _within(call, ask))

    async def change(self, call: Call, do: Callable[[Records, Administrator], T]) -> T:
        """Change something of the organisation that the path names, if any."""
        now_ms = self.services.clock.now_ms()
        within = _within(call, do)
        return await self.administration.change(
            lambda records: within(records, administrator(records, call.credential, now_ms=now_ms))
        )

    @property
    def administration(self) -> Administration:
        """The records."""
        found = self.services.administration
        if found is None:
            raise StoreUnavailable("this service does not administrate", code="not_available")
        return found

    def now_ms(self) -> int:
        """Unix milliseconds."""
        return self.services.clock.now_ms()


def _within(call: Call, ask: Callable[[Records, Administrator], T]) -> Callable[[Records, Administrator], T]:
    """The same, once it is sure that the organisation of the path is within reach."""

    def asked(records: Records, who: Administrator) -> T:
        if "organisation" in call.path:
            who.check_reach(call.path["organisation"])
        return ask(records, who)

    return asked


def answered(record: T, view: Callable[[T], dict[str, Any]], *, status: int = 200) -> Response:
    """A record, with its tag."""
    return json_answer(view(record), status=status, headers=[(b"etag", f'"{tag_of(record)}"'.encode())])


def page_of(
    found: Sequence[T], count: int, view: Callable[[T], dict[str, Any]], follows: Callable[[T], str]
) -> Response:
    """One more than a page was asked for, which tells whether another follows."""
    page, has_more = found[:count], len(found) > count
    return json_answer(
        {
            "object": "list",
            "data": [view(each) for each in page],
            "has_more": has_more,
            "next_cursor": follows(page[-1]) if has_more else None,
        }
    )


async def read_whole(request: Request) -> bytes:
    """A body, bounded.

    Raises:
        TooLarge: It is larger than that.
        UnsupportedMedia: It is not declared as JSON.
    """
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > BODY_BYTES_MAX:
            raise TooLarge(f"the body is larger than {BODY_BYTES_MAX} bytes; send less", code="body_too_large")
        pieces.append(piece)
    if size and request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMedia("the body must be declared as content-type: application/json")
    return b"".join(pieces)
