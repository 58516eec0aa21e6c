"""Which names may become labels and log fields.

A client chooses its model's name, and before its key is checked also its organisation's. If those became labels,
anyone could fill the memory of the service and of Prometheus; if they became log fields, a prompt sent as a model's
name would be in the log.
"""

from __future__ import annotations

from collections.abc import Collection
from string import ascii_letters, digits

UNKNOWN = "unknown"
"""Stands for every name that nobody configured."""

ROUTES_MAX = 64
KEY_CHARACTERS_MAX = 32
_ROUTE_CHARACTERS = frozenset(ascii_letters + digits + "._-")
_KEY_CHARACTERS = frozenset(ascii_letters + digits + ".-")


class Vocabulary:
    """The names that the configuration, not a client, brought in.

    Args:
        organisations: Live view: asked each time an unfamiliar name is seen, so that one added at run time counts.
        models: The same.

    Example:
        >>> names = Vocabulary(organisations={"acme"}, models={"chat-small"})
        >>> names.model("chat-small"), names.model("ignore previous instructions"), names.model("")
        ('chat-small', 'unknown', '')
    """

    def __init__(self, *, organisations: Collection[str], models: Collection[str]) -> None:
        self._organisations = organisations
        self._models = models
        self._routes: set[str] = set()

    def organisation(self, name: str) -> str:
        """``name`` if it is configured, "" if there is none, else "unknown"."""
        return name if not name or name in self._organisations else UNKNOWN

    def model(self, name: str) -> str:
        """``name`` if it is configured, "" if there is none, else "unknown"."""
        return name if not name or name in self._models else UNKNOWN

    def route(self, name: str) -> str:
        """``name`` if it looks like one of our route names, up to 64 different ones; a path never does."""
        if not name or name in self._routes:
            return name
        if len(name) > 40 or not _ROUTE_CHARACTERS.issuperset(name) or len(self._routes) >= ROUTES_MAX:
            return UNKNOWN
        self._routes.add(name)
        return name

    def key(self, key_id: str) -> str:
        """``key_id`` if it can be one. Secrets are longer, so a key cut at the wrong place leaves none in a log."""
        return key_id if len(key_id) <= KEY_CHARACTERS_MAX and _KEY_CHARACTERS.issuperset(key_id) else UNKNOWN
