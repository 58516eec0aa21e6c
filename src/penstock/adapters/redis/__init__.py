"""The quota in Redis: a function library that decides, and the connection that asks it."""

from penstock.adapters.redis.library import Loaded, load_library
from penstock.adapters.redis.outbox import Entry, Outbox
from penstock.adapters.redis.store import RedisStore, open_store

__all__ = ["Entry", "Loaded", "Outbox", "RedisStore", "load_library", "open_store"]
