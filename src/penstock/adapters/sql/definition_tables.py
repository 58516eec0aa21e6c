"""The tables of what governs requests, besides keys: organisations, their teams and limits, models and their prices.

The cluster's processes read definitions from here, so that all of them see one version; ``penstock setup`` carries the
configuration over. Prices are never changed: a new one is a row with the moment from which it holds.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, PrimaryKeyConstraint, Table, Text, true

from penstock.adapters.sql.tables import metadata

organisations = Table(
    "organisations",
    metadata,
    Column("name", Text, nullable=False),
    Column("reserve", Text, nullable=False),  # penstock.quota.definitions.ReservePolicy
    Column("overrun", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("shard", BigInteger, nullable=False, server_default="-1"),  # of the work queues; -1: not assigned yet
    Column("removed_at_ms", BigInteger, nullable=False),  # 0: not removed; then it has no limits, models or keys
    Column("managed_by", Text, nullable=False, server_default="file"),  # or "api"
    Column("results_ms", BigInteger),  # how long results are kept; null: as the configuration says, as in the next
    Column("answers_ms", BigInteger),  # the same of idempotent answers
    PrimaryKeyConstraint("name"),
)

teams = Table(
    "teams",
    metadata,
    Column("organisation", Text, nullable=False),
    Column("name", Text, nullable=False),
    PrimaryKeyConstraint("organisation", "name"),
)

limits = Table(
    "limits",
    metadata,
    Column("organisation", Text, nullable=False),
    Column("id", Text, nullable=False),  # penstock.quota.limits.limit_id
    Column("owner", Text, nullable=False),
    Column("metric", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("period_ms", BigInteger, nullable=False),
    Column("anchor_ms", BigInteger, nullable=False),
    Column("model", Text),
    Column("cap", BigInteger, nullable=False),
    PrimaryKeyConstraint("organisation", "id"),
)

models = Table(
    "models",
    metadata,
    Column("name", Text, nullable=False),
    Column("context", BigInteger, nullable=False),
    Column("template_tokens", BigInteger, nullable=False),
    Column("tokens_per_byte_max", BigInteger, nullable=False),
    Column("managed_by", Text, nullable=False, server_default="file"),  # its price; or "api"
    PrimaryKeyConstraint("name"),
)

prices = Table(
    "prices",
    metadata,
    Column("model", Text, nullable=False),
    Column("since_ms", BigInteger, nullable=False),
    Column("prompt_picos", BigInteger, nullable=False),
    Column("cached_picos", BigInteger, nullable=False),
    Column("completion_picos", BigInteger, nullable=False),
    Column("request_picos", BigInteger, nullable=False),
    Column("in_force", Boolean, nullable=False, server_default=true()),  # false until since_ms has come
    PrimaryKeyConstraint("model", "since_ms"),
)

# What must not be here any more: a job, or ("" as the job) all that an organisation had until then.
erasures = Table(
    "erasures",
    metadata,
    Column("organisation", Text, nullable=False),
    Column("job", Text, nullable=False),
    Column("erased_at_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("organisation", "job"),
)
