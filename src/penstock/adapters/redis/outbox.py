"""The outbox streams in Redis, as the keeper reads and trims them: one for each partition.

Reading and trimming apart, so that an event leaves Redis only after the ledger has it: read, commit to the ledger
together with the position, then trim up to that position. An event that is read twice is the same entry, by its id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from penstock.adapters.redis.address import Address
from penstock.adapters.redis.cluster import client_of
from penstock.adapters.redis.translating import PARTITIONS, outbox_key, partition_of, read_event
from penstock.adapters.redis.wire import Refusal, pack
from penstock.errors import StoreUnavailable
from penstock.quota.events import Event

START = "0-0"
_LOOKED_THROUGH_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One event of a partition's outbox. ``id`` grows within a partition: ``<Unix milliseconds>-<number>``.

    ``traceparent``: of the request that it is about, if that is recorded.
    """

    id: str
    event: Event
    traceparent: str | None = None


class Outbox:
    """The outboxes of every partition. Its calls are bounded by ``bound_s`` seconds each, and tried twice."""

    def __init__(self, address: Address, *, name: str = "penstock-outbox", bound_s: float = 5.0) -> None:
        self._client = client_of(address, name=name, bound_s=bound_s)

    async def start(self) -> None:
        """Connect.

        Raises:
            StoreUnavailable: It cannot be reached.
        """
        await self._client.start()

    async def close(self) -> None:
        """End the connection."""
        await self._client.close()

    async def _ask(self, command: bytes, partition: int) -> Any:
        try:
            return await self._client.ask(command, partition)
        except Refusal as refusal:
            raise StoreUnavailable(f"Redis refuses the outbox: {refusal}; run `penstock setup`") from refusal

    async def lengths(self) -> dict[int, int]:
        """How many entries each partition's outbox has; those without any are left out.

        Raises:
            StoreUnavailable: No answer in time, or the account may not.
        """
        replies = await asyncio.gather(*(self._ask(pack("XLEN", outbox_key(p)), p) for p in range(PARTITIONS)))
        return {partition: count for partition, count in enumerate(replies) if count}

    async def oldest_ms(self) -> tuple[int, int]:
        """How many events wait in all, and when the oldest of them happened, Unix milliseconds; 0 if none waits.

        Raises:
            StoreUnavailable: No answer in time, or the account may not.
        """
        lengths = await self.lengths()
        first = await self.read(partitions=tuple(lengths), count_max=1)
        return sum(lengths.values()), min((each[0].event.occurred_at_ms for each in first.values()), default=0)

    async def read(
        self,
        after: Mapping[int, str] | None = None,
        *,
        partitions: tuple[int, ...] = tuple(range(PARTITIONS)),
        count_max: int = 1000,
    ) -> dict[int, list[Entry]]:
        """The next entries of each partition, oldest first, in one round trip; partitions without any are left out.

        Args:
            after: By partition the id of the last entry that was read; the beginning if it names none.
            count_max: Of each partition.

        Raises:
            StoreUnavailable: No answer in time, or the account may not.
        """
        positions = after or {}
        asked = [
            self._ask(pack("XRANGE", outbox_key(p), f"({positions.get(p, START)}", "+", "COUNT", count_max), p)
            for p in partitions
        ]
        found = zip(partitions, await asyncio.gather(*asked), strict=True)
        return {partition: [_entry(*each) for each in entries] for partition, entries in found if entries}

    async def may_have(self, organisation: str, reservation: str) -> bool:
        """Whether an event of a reservation waits; or so many others do that they are not looked through.

        Raises:
            StoreUnavailable: No answer in time, or the account may not.
        """
        partition = partition_of(organisation)
        found = (await self.read(partitions=(partition,), count_max=_LOOKED_THROUGH_MAX)).get(partition, [])
        if len(found) == _LOOKED_THROUGH_MAX:
            return True
        return any(entry.event.reservation == reservation for entry in found)

    async def trim(self, through: Mapping[int, str]) -> int:
        """Remove each partition's entries up to and including an id; how many that were. Again removes no more.

        Raises:
            StoreUnavailable: No answer in time, or the account may not.
        """
        asked = [
            self._ask(pack("XTRIM", outbox_key(partition), "MINID", "=", _next_id(last)), partition)
            for partition, last in through.items()
        ]
        return sum(await asyncio.gather(*asked))


def _entry(entry_id: bytes, fields: list[bytes]) -> Entry:
    return Entry(entry_id.decode(), read_event(fields[1]), fields[3].decode() if len(fields) > 2 else None)


def _next_id(entry_id: str) -> str:
    """The least id above another.

    Example:
        >>> _next_id("1700000000000-3")
        '1700000000000-4'
    """
    milliseconds, _, number = entry_id.partition("-")
    return f"{milliseconds}-{int(number) + 1}"
