"""How far the keeper has drained the outbox, as any process may ask that wants to forget what it was acknowledged.

An outbox that is empty has been drained, or was lost with everything else. So the epoch is asked with it: of a state
that is gone, or was put back, it is another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from penstock.adapters.redis.cluster import Client
from penstock.adapters.redis.translating import keys_of, outbox_key, partition_of
from penstock.adapters.redis.wire import Refusal, pack
from penstock.errors import StoreUnavailable

EntryId = tuple[int, ...]
_NONE: EntryId = (0, 0)


@dataclass(frozen=True, slots=True)
class Position:
    """Of one organisation, at one instant.

    Args:
        epoch: 0 if its state is gone, or admissions have not begun.
        newest: Entry of its partition's outbox, drained or not.
        oldest: Entry there that is not drained; None if each is.
    """

    epoch: int
    newest: EntryId
    oldest: EntryId | None


async def find_positions(client: Client, organisations: Collection[str]) -> dict[str, Position]:
    """Where the outboxes of some organisations are: a question for each partition, and then for each organisation.

    Raises:
        StoreUnavailable: No answer in time, or the account may not.
    """
    partitions = {partition_of(name) for name in organisations}
    try:
        streams = await asyncio.gather(*(_stream(client, each) for each in partitions))
        epochs = await asyncio.gather(
            *(client.ask(pack("HGET", keys_of(name)[0], "_epoch"), name) for name in organisations)
        )  # last: an outbox that was lost before it answered is seen by this
    except Refusal as refusal:
        raise StoreUnavailable(f"Redis refuses to tell what is drained: {refusal}; run `penstock setup`") from refusal
    at = dict(zip(partitions, streams, strict=True))
    told = zip(organisations, epochs, strict=True)
    return {name: Position(int(epoch or 0), *at[partition_of(name)]) for name, epoch in told}


async def _stream(client: Client, partition: int) -> tuple[EntryId, EntryId | None]:
    try:
        fields: list[Any] = await client.ask(pack("XINFO", "STREAM", outbox_key(partition)), partition)
    except Refusal as refusal:
        if "no such key" in str(refusal):
            return _NONE, None
        raise
    about = dict(zip(fields[::2], fields[1::2], strict=True))
    first = about[b"first-entry"]
    return _read(about[b"last-generated-id"]), _read(first[0]) if first else None


def _read(entry_id: bytes) -> EntryId:
    return tuple(map(int, entry_id.split(b"-")))
