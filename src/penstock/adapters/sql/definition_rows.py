"""What governs requests, read within a transaction of the caller's, as the quota takes it.

A price holds once it is marked as in force, not once its moment has come: so whoever reads one version of the
definitions reads the same ones, whatever its clock says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Engine, Row, select

from penstock.adapters.sql.definition_tables import limits, models, organisations, prices, teams
from penstock.adapters.sql.key_rows import all_keys
from penstock.adapters.sql.keys import read_version
from penstock.lanes.scopes import effective
from penstock.quota.definitions import Definitions, Key, Kind, Limit, Metric, Model, Overrun, Price, ReservePolicy

PICOS = ("prompt_picos", "cached_picos", "completion_picos", "request_picos")


@dataclass(frozen=True, slots=True)
class Governed:
    """Everything that governs requests, keys included, as of one version; at least 1, and higher after each change."""

    version: int
    organisations: Mapping[str, Definitions]


def read_governed(engine: Engine) -> Governed:
    """Everything, with keys as they count. An organisation that was removed is there, and may use nothing."""
    with engine.connect() as connection:
        while True:  # a change between two of these reads would belong to another version
            version = read_version(connection)
            found = organisations_with_keys(connection)
            if read_version(connection) == version:
                return Governed(version + 1, found)


def organisations_with_keys(connection: Connection) -> dict[str, Definitions]:
    """By organisation."""
    stored = all_keys(connection)
    known = {each.path: each for each in stored}
    keys: dict[str, dict[str, Key]] = {}
    for each in stored:
        keys.setdefault(each.organisation, {})[each.key.id] = effective(each, known).key
    without = organisations_without_keys(connection)
    return {name: replace(each, keys=keys.get(name, {})) for name, each in without.items()}


def organisations_without_keys(connection: Connection) -> dict[str, Definitions]:
    """By organisation."""
    known = models_in_force(connection)
    found: dict[str, list[Limit]] = {}
    for row in connection.execute(select(limits).order_by(limits.c.organisation, limits.c.id)):
        found.setdefault(row.organisation, []).append(limit_of(row))
    return {
        row.name: Definitions(
            limits=tuple(found.get(row.name, ())),
            models={} if row.removed_at_ms else known,
            reserve=ReservePolicy(row.reserve),
            overrun=Overrun(row.overrun),
            shard=max(0, row.shard),
        )
        for row in connection.execute(select(organisations).order_by(organisations.c.name))
    }


def limit_of(row: Row[Any]) -> Limit:
    """A limit, of its row."""
    return Limit(
        owner=row.owner,
        metric=Metric(row.metric),
        kind=Kind(row.kind),
        cap=row.cap,
        period_ms=row.period_ms,
        anchor_ms=row.anchor_ms,
        model=row.model,
    )


def limit_columns(limit: Limit) -> dict[str, Any]:
    """The other way round."""
    return {
        "owner": limit.owner,
        "metric": limit.metric.value,
        "kind": limit.kind.value,
        "period_ms": limit.period_ms,
        "anchor_ms": limit.anchor_ms,
        "model": limit.model,
        "cap": limit.cap,
    }


def models_in_force(connection: Connection) -> dict[str, Model]:
    """Every model with the price that holds."""
    newest = prices_in_force(connection)
    return {
        row.name: Model(
            name=row.name,
            context=row.context,
            template_tokens=row.template_tokens,
            tokens_per_byte_max=row.tokens_per_byte_max,
            price=newest[row.name],
        )
        for row in connection.execute(select(models).order_by(models.c.name))
    }


def prices_in_force(connection: Connection) -> dict[str, Price]:
    """By model; also of those that left."""
    rows = connection.execute(select(prices).where(prices.c.in_force).order_by(prices.c.model, prices.c.since_ms))
    return {row.model: price_of(row) for row in rows}


def price_of(row: Row[Any]) -> Price:
    """A price, of its row."""
    return Price(**{each: getattr(row, each) for each in PICOS})


def teams_by_organisation(engine: Engine) -> dict[str, set[str]]:
    """Every organisation that is not removed, with the names of its teams."""
    with engine.connect() as connection:
        served = select(organisations.c.name).where(organisations.c.removed_at_ms == 0)
        found: dict[str, set[str]] = {name: set() for name in connection.execute(served).scalars()}
        for row in connection.execute(select(teams)):
            if row.organisation in found:
                found[row.organisation].add(row.name)
    return found
