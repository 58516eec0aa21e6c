"""The embedded quota store: the model in this process, made durable in SQLite by commits that requests share."""

from __future__ import annotations

from penstock.adapters.embedded.crash_points import CRASH_POINTS
from penstock.adapters.embedded.restarting import open_store
from penstock.adapters.embedded.store import EmbeddedStore

__all__ = ["CRASH_POINTS", "EmbeddedStore", "open_store"]
