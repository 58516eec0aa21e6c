"""Which of a model's work queues an organisation's jobs wait in.

Assigned and remembered, not hashed: until there are more organisations than shards, none shares a queue with another,
so nobody's jobs are behind anybody else's. Beyond that neighbours share, as evenly as can be.
"""

from __future__ import annotations

from collections.abc import Mapping

SHARD_MAX = 1_023
"""The most that a definition may carry; a configuration allows fewer."""


def assign_shards(known: Mapping[str, int | None], shards: int) -> dict[str, int]:
    """A shard for every organisation: the known one where it can stay, so that as few move as possible.

    Moving is harmless: what waits in the old queue is consumed from there.

    Args:
        known: By organisation, its shard so far; None for a new one.
        shards: How many there are.

    Returns:
        By organisation; no shard has two organisations more than another.

    Example:
        >>> assign_shards({"acme": 1, "globex": None}, 2)
        {'globex': 0, 'acme': 1}
    """
    members: list[list[str]] = [[] for _ in range(shards)]
    homeless = []
    for organisation in sorted(known):
        shard = known[organisation]
        if shard is not None and 0 <= shard < shards:
            members[shard].append(organisation)
        else:
            homeless.append(organisation)
    for organisation in homeless:
        min(members, key=len).append(organisation)
    while len(max(members, key=len)) > len(min(members, key=len)) + 1:
        min(members, key=len).append(max(members, key=len).pop())
    return {organisation: shard for shard, each in enumerate(members) for organisation in each}
