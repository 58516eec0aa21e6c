"""What a key may do, compared with what the key that made it may do: never more, also after the maker was narrowed.

Pure. None in a scope stands for everything, so the narrower of None and a set is the set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from penstock.lanes.administering import StoredKey

_GENERATIONS_MAX = 32


def excess(wanted: StoredKey, maker: StoredKey) -> str | None:
    """In what a key would be wider than its maker, in words; None if in nothing.

    Args:
        wanted: As it is to be.
        maker: As it counts; see ``effective``.
    """
    key, by = wanted.key, maker.key
    if wanted.admin.rank > maker.admin.rank:
        return f"admin: {wanted.admin.value or 'none'} is more than yours, {maker.admin.value or 'none'}"
    for name, wider, own in (("models", key.models, by.models), ("routes", key.routes, by.routes)):
        if own is not None and (wider is None or not wider <= own):
            beyond = "all" if wider is None else ", ".join(sorted(wider - own))
            return f"{name}: {beyond}, and yours are {', '.join(sorted(own)) or 'none'}"
    if by.cost_nanos_max is not None and (key.cost_nanos_max is None or key.cost_nanos_max > by.cost_nanos_max):
        asked = "no bound" if key.cost_nanos_max is None else str(key.cost_nanos_max)
        return f"cost_nanos_max: {asked}, and yours is {by.cost_nanos_max}"
    return None


def narrowed(stored: StoredKey, maker: StoredKey) -> StoredKey:
    """The key, no wider than its maker."""
    key, by = stored.key, maker.key
    costs = [cost for cost in (key.cost_nanos_max, by.cost_nanos_max) if cost is not None]
    return replace(
        stored,
        admin=min(stored.admin, maker.admin, key=lambda each: each.rank),
        key=replace(
            key,
            models=_common(key.models, by.models),
            routes=_common(key.routes, by.routes),
            cost_nanos_max=min(costs, default=None),
        ),
    )


def effective(stored: StoredKey, known: Mapping[str, StoredKey]) -> StoredKey:
    """The key as it counts: narrowed by everyone it descends from.

    A maker's expiry or revocation ends what it may make, not what it has made.

    Args:
        known: Every key by its path.

    Example:
        >>> from penstock.lanes.administering import StoredKey
        >>> from penstock.quota.definitions import Key
        >>> def stored(id, models, creator=None):
        ...     key = Key(id=id, models=models)
        ...     return StoredKey(organisation="a", name="", created_at_ms=0, rotated_at_ms=0, revoked_at_ms=0,
        ...                      key=key, creator=creator)
        >>> maker, made = stored("k1", frozenset({"small"})), stored("k2", None, "a/k1")
        >>> sorted(effective(made, {"a/k1": maker}).key.models)
        ['small']
    """
    found, creator = stored, stored.creator
    for _ in range(_GENERATIONS_MAX):
        maker = None if creator is None else known.get(creator)
        if maker is None:
            return found
        found, creator = narrowed(found, maker), maker.creator
    return replace(found, key=replace(found.key, models=frozenset(), routes=frozenset()))  # no such line of makers


def _common(first: frozenset[str] | None, second: frozenset[str] | None) -> frozenset[str] | None:
    if first is None or second is None:
        return second if first is None else first
    return first & second
