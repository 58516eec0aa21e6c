"""What the broker has to hold for Penstock: read from the template ``config/rabbitmq/definitions.json`` and filled in.

Pure. The template is RabbitMQ's own format of definitions; the parsed document is filled, never its text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from penstock.errors import ConfigurationError

TIER: Final = "standard"
KINDS: Final = ("vhosts", "users", "permissions", "policies", "exchanges", "queues", "bindings")
_OTHER = re.compile(r"[^A-Za-z0-9._-]")
_PLACE = re.compile(r"\{([a-z_]+)\}")


def queue_name(model: str, tier: str = TIER) -> str:
    """What the queues of a model's jobs have in common.

    Example:
        >>> queue_name("meta-llama/Llama-3.1-8B-Instruct")
        'jobs.meta-llama_2fLlama-3.1-8B-Instruct.standard'
    """
    spelt = _OTHER.sub(lambda found: "".join(f"_{byte:02x}" for byte in found[0].encode()), model)
    return f"jobs.{spelt}.{tier}"


def shard_name(model: str, shard: int, tier: str = TIER) -> str:
    """The queue, and routing key, of the jobs of those organisations that have this shard.

    Example:
        >>> shard_name("m", 3)
        'jobs.m.standard.3'
    """
    return f"{queue_name(model, tier)}.{shard}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much a queue takes.

    Args:
        ready_bytes_max: Bytes that wait in one queue; more is refused.
        deliveries: Of one message, before it becomes a dead letter.
    """

    ready_bytes_max: int
    deliveries: int


Definitions = Mapping[str, list[dict[str, Any]]]
"""By kind, see ``KINDS``."""


def fill(
    template: str, *, vhost: str, models: Iterable[str], shards: int, bounds: Bounds, users: Iterable[str]
) -> Definitions:
    """The definitions for one broker.

    Args:
        template: The text of ``definitions.json``.
        models: Their names; each gets so many queues as there are ``shards``.
        users: Those that have a password; what is said of others is left out.

    Raises:
        ConfigurationError: The template is not JSON, lacks a kind or names an unknown place, or two models would share
            a queue.
    """
    try:
        document = msgspec.json.decode(template, type=dict[str, list[Any]])
    except msgspec.DecodeError as error:
        raise ConfigurationError((f"definitions.json: {error}; restore the file as it was shipped",)) from error
    missing = [kind for kind in KINDS if kind not in document]
    if missing:
        raise ConfigurationError((f"definitions.json: {', '.join(missing)} not there; restore the file as shipped",))
    queues = _queues(models, shards)
    places: dict[str, Any] = {
        "vhost": vhost,
        "ready_bytes_max": bounds.ready_bytes_max,
        "deliveries": bounds.deliveries,
    }
    known = frozenset(users)
    filled: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for kind in KINDS:
        for entry in document[kind]:
            user = entry.get("user") or (entry["name"] if kind == "users" else None)
            if user is not None and user not in known:
                continue
            for queue in queues if _is_for_each(entry) else ("",):
                filled[kind].append(_filled(entry, {**places, "queue": queue}))
    return filled


def _queues(models: Iterable[str], shards: int) -> list[str]:
    owners: dict[str, str] = {}
    for model in models:
        other = owners.setdefault(queue_name(model), model)
        if other != model:
            raise ConfigurationError(
                (f"models: {other!r} and {model!r} would share the queue {queue_name(model)}; rename one",)
            )
    return [shard_name(model, shard) for model in owners.values() for shard in range(shards)]


def _is_for_each(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_is_for_each, value.values()))
    return isinstance(value, str) and "{queue}" in value


def _filled(value: Any, places: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        return {name: _filled(inner, places) for name, inner in value.items()}
    if not isinstance(value, str):
        return value
    found = _PLACE.fullmatch(value)
    if found is None:
        return value
    if found[1] not in places:
        known = ", ".join(f"{{{place}}}" for place in places)
        raise ConfigurationError((f"definitions.json: {value} is no place to fill; there are {known}",))
    return places[found[1]]
