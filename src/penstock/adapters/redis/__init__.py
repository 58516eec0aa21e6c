"""The quota in Redis: a function library that decides, and the connection that asks it."""

from penstock.adapters.redis.library import Loaded, load_library
from penstock.adapters.redis.outbox import Entry, Outbox
from penstock.adapters.redis.store import RedisStore, open_store
from penstock.adapters.redis.users import Applied, apply_users

__all__ = ["Applied", "Entry", "Loaded", "Outbox", "RedisStore", "apply_users", "load_library", "open_store"]
