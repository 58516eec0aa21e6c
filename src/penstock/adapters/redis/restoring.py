"""Putting an organisation's state back into a Redis that lost it, from what the ledger knows.

In pages, since a quarter of an hour may have seen a million reservations; each call is atomic, and may be repeated.
Each says which of this restore it is, so that a Redis that forgot some of them again takes no more, and is never ready.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from penstock.adapters.redis.address import Address
from penstock.adapters.redis.cluster import client_of
from penstock.adapters.redis.translating import keys_of, read_answer
from penstock.adapters.redis.wire import Refusal, pack
from penstock.errors import StoreUnavailable
from penstock.quota.events import Event
from penstock.quota.limits import parse_limit_id
from penstock.quota.operations import Refused

TOMBSTONES_PER_CALL = 500
CALLS_AT_ONCE = 8
BOUND_S = 5.0

_encode = msgspec.json.Encoder().encode


class Restorer:
    """Calls ``penstock_restore``, between the define and the marker of a rebuild."""

    def __init__(self, address: Address, *, name: str = "penstock-restore") -> None:
        self._client = client_of(address, name=name, bound_s=BOUND_S)

    async def start(self) -> None:
        """Connect.

        Raises:
            StoreUnavailable: It cannot be reached.
        """
        await self._client.start()

    async def close(self) -> None:
        """End the connection."""
        await self._client.close()

    async def restore(
        self,
        organisation: str,
        *,
        clock_ms: int,
        window_sums: dict[tuple[str, int], int],
        tombstones: Sequence[Event],
        jobs: Sequence[Event] = (),
    ) -> str | Refused:
        """Windows become their sums (the newest of each limit), buckets empty, and ended reservations known.

        Args:
            clock_ms: The organisation's clock starts no earlier.
            tombstones: Rows of reservations to be remembered, by time.
            jobs: One row of each job that is open: it is queued again, and holds what it held.

        Returns:
            What its ready must name. Refused: the state is there already, or was lost, or restored by another, on the
            way.

        Raises:
            StoreUnavailable: No answer in time.
        """
        newest = {limit: (window, used) for (limit, window), used in sorted(window_sums.items())}
        counters = [_counter(limit, window, used) for limit, (window, used) in newest.items()]
        common = {"organisation": organisation, "caller_now_ms": clock_ms, "clock_ms": clock_ms}
        first = {**common, "counters": counters, "tombstones": [], "jobs": []}
        rebuild = secrets.token_hex(8)
        portions = enumerate([first, *self._portions({**common, "counters": []}, tombstones, jobs)])
        pages = [{**portion, "rebuild": rebuild, "page": page} for page, portion in portions]
        for start in range(0, len(pages), CALLS_AT_ONCE):  # carried out in order, whoever waits for them
            calls = [self._call(organisation, page) for page in pages[start : start + CALLS_AT_ONCE]]
            for reply in await asyncio.gather(*calls):
                answer = read_answer(reply)
                if isinstance(answer, Refused):
                    return answer
        return f"{len(pages)} {rebuild}"

    async def restored(self, organisation: str) -> str | None:
        """What the ready of a state that is marked must name; None if a keeper of an earlier version restored it.

        Raises:
            StoreUnavailable: No answer in time, or the account may not.
        """
        try:
            found = await self._client.ask(pack("HGET", keys_of(organisation)[0], "_restored"), organisation)
        except Refusal as refusal:
            raise StoreUnavailable(
                f"Redis tells nothing of {organisation}: {refusal}; run `penstock setup`"
            ) from refusal
        return None if found is None else str(found, "utf-8")

    async def forget(self, organisation: str) -> None:
        """Remove all state but the outbox: as if Redis had lost it.

        Raises:
            StoreUnavailable: No answer in time, or the account may not.
        """
        state = keys_of(organisation)[:4]  # in one command: half of it would be worse than none
        try:
            await self._client.ask(pack("UNLINK", *state), organisation)
        except Refusal as refusal:
            raise StoreUnavailable(f"Redis keeps {organisation}: {refusal}; run `penstock setup`") from refusal

    def _portions(
        self, common: dict[str, Any], tombstones: Sequence[Event], jobs: Sequence[Event]
    ) -> Iterator[dict[str, Any]]:
        for start in range(0, len(tombstones), TOMBSTONES_PER_CALL):
            yield {**common, "tombstones": tombstones[start : start + TOMBSTONES_PER_CALL], "jobs": []}
        for start in range(0, len(jobs), TOMBSTONES_PER_CALL):
            yield {**common, "tombstones": [], "jobs": jobs[start : start + TOMBSTONES_PER_CALL]}

    async def _call(self, organisation: str, argument: dict[str, Any]) -> Any:
        call = pack("FCALL", "penstock_restore", "5", *keys_of(organisation), _encode(argument))
        return await self._client.ask(call, organisation)


def _counter(limit: str, window: int, used: int) -> dict[str, Any]:
    identity = parse_limit_id(limit)
    return {
        "limit": limit,
        "metric": identity.metric,
        "kind": identity.kind,
        "period_ms": identity.period_ms,
        "anchor_ms": identity.anchor_ms,
        "window": window,
        "used": used,
    }
