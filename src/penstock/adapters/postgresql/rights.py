"""Who may do what: each role with the least that its process needs, as one table that tests try out.

Nobody but the owner changes the schema, nobody at all changes the ledger: the keeper adds to it, others read.
"""

from __future__ import annotations

from collections.abc import Mapping

OWNER = "penstock_owner"  # nobody logs in as it: `penstock setup` migrates in its name
PREFIX = "penstock_"

_READ = ("SELECT",)
_ADD = ("SELECT", "INSERT")
_CHANGE = ("SELECT", "INSERT", "UPDATE")
_REPLACE = (*_CHANGE, "DELETE")
_DEFINITIONS = dict.fromkeys(("organisations", "teams", "limits", "models", "prices", "alembic_version"), _READ)

RIGHTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "api": {
        **_DEFINITIONS,
        **dict.fromkeys(("organisations", "teams", "limits"), _REPLACE),
        "prices": _CHANGE,
        "erasures": _CHANGE,
        "ledger": _READ,
        "corrections": _READ,  # written by the account of `penstock setup`: a person's act, and no process's
        "usage_hourly": _READ,
        "usage_daily": _READ,
        "jobs": _READ,
        "results": _REPLACE,
        "outbox_positions": _READ,
        "api_keys": _CHANGE,
        "versions": _CHANGE,
        "audit_log": _ADD,
    },
    "keeper": {
        **_DEFINITIONS,
        "ledger": _ADD,
        "usage_hourly": _CHANGE,
        "usage_daily": _CHANGE,
        "erasures": _READ,
        "jobs": _REPLACE,
        "results": ("SELECT", "UPDATE", "DELETE"),
        "outbox_positions": _CHANGE,
        "epochs": _CHANGE,
        "scaling_figures": _REPLACE,
        "keeper": ("SELECT", "UPDATE"),
        "api_keys": _READ,
        "versions": _READ,
    },
    "collector": {
        "results": _CHANGE,
        "alembic_version": _READ,
    },
}
SEQUENCES: Mapping[str, tuple[str, ...]] = {"api": ("audit_log_id_seq",)}
EMBEDDED_ONLY = ("reservations", "bucket_states", "queued_jobs")  # what Redis and RabbitMQ hold in a cluster
