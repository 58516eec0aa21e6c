"""What governs requests, kept in the database: carried over from the configuration once, read by every process.

A change raises the version that keys raise too, writes the audit log in its own transaction, and leaves what did not
change alone; carrying the same over again changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Table, and_, delete, func, insert, select, update

from penstock.adapters.sql.audit_log import record
from penstock.adapters.sql.database import writing
from penstock.adapters.sql.definition_tables import limits, models, organisations, prices, teams
from penstock.adapters.sql.keys import raise_version
from penstock.adapters.sql.shards import assign
from penstock.quota.definitions import Definitions, Kind, Limit, Metric, Model, Overrun, Price, ReservePolicy
from penstock.quota.limits import limit_id

_PICOS = ("prompt_picos", "cached_picos", "completion_picos", "request_picos")


def record_definitions(
    engine: Engine, definitions: Mapping[str, Definitions], *, shards: int, now_ms: int, actor: str
) -> bool:
    """Make these the definitions of these organisations, and of no others; tells whether anything changed.

    An organisation that is not named any more keeps its row and its keys, and has nothing left that it may use.

    Args:
        definitions: By organisation; keys and shards in it are not looked at. Every one names the same models.
        shards: How many work queues each model has.
        actor: Who carries them over, for the audit log.
    """
    with writing(engine) as connection:
        version = raise_version(connection)  # first: whoever else records waits here
        changes = [
            *_record_models(connection, definitions, now_ms=now_ms),
            *_record_organisations(connection, definitions, now_ms=now_ms),
            *(change for name in definitions for change in _record_limits(connection, name, definitions[name])),
            *_record_shards(connection, shards),
        ]
        for subject, organisation, before, after in changes:
            record(
                connection,
                at_ms=now_ms,
                actor=actor,
                action="definitions.record",
                organisation=organisation,
                subject=subject,
                before=before,
                after=after,
            )
        if not changes:
            connection.rollback()
    return bool(changes and version)


def read_definitions(engine: Engine) -> dict[str, Definitions]:
    """By organisation, without keys. One that was removed is there, and has nothing that it may use."""
    with engine.begin() as connection:
        known = _models(connection)
        found: dict[str, list[Limit]] = {}
        for row in connection.execute(select(limits).order_by(limits.c.organisation, limits.c.id)):
            found.setdefault(row.organisation, []).append(
                Limit(
                    owner=row.owner,
                    metric=Metric(row.metric),
                    kind=Kind(row.kind),
                    cap=row.cap,
                    period_ms=row.period_ms,
                    anchor_ms=row.anchor_ms,
                    model=row.model,
                )
            )
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


Change = tuple[str, str | None, Any, Any]  # subject, organisation, before, after


def _record_models(connection: Connection, definitions: Mapping[str, Definitions], *, now_ms: int) -> list[Change]:
    wanted = {name: model for each in definitions.values() for name, model in each.models.items()}
    known = _models(connection)
    changes: list[Change] = []
    for name in sorted({*wanted, *known}):
        before, after = known.get(name), wanted.get(name)
        if before == after:
            continue
        row: dict[str, Any] = {"name": name}
        if after is None:
            connection.execute(delete(models).where(models.c.name == name))
        else:
            row |= {
                "context": after.context,
                "template_tokens": after.template_tokens,
                "tokens_per_byte_max": after.tokens_per_byte_max,
            }
            _put(connection, models, models.c.name == name, row)
            if _newest_prices(connection).get(name) != after.price:
                picos = {each: getattr(after.price, each) for each in _PICOS}
                newest = select(func.max(prices.c.since_ms)).where(prices.c.model == name)
                last_ms = connection.execute(newest).scalar() or 0
                since_ms = max(now_ms, last_ms + 1)  # two changes within a millisecond are two rows
                connection.execute(insert(prices).values(model=name, since_ms=since_ms, **picos))
        changes.append((f"model {name}", None, before, after))
    return changes


def _record_organisations(
    connection: Connection, definitions: Mapping[str, Definitions], *, now_ms: int
) -> list[Change]:
    known = {row.name: row for row in connection.execute(select(organisations))}
    changes: list[Change] = []
    for name, each in definitions.items():
        row = known.get(name)
        policy = {"reserve": each.reserve.value, "overrun": each.overrun.value, "removed_at_ms": 0}
        before = None if row is None else {field: getattr(row, field) for field in policy}
        if before == policy:
            continue
        created_at_ms = now_ms if row is None else row.created_at_ms
        shard = {} if row is None else {"shard": row.shard}
        values = {"name": name, "created_at_ms": created_at_ms, **policy, **shard}
        _put(connection, organisations, organisations.c.name == name, values)
        changes.append((f"organisation {name}", name, before, policy))
    for name in known.keys() - definitions.keys():
        if known[name].removed_at_ms == 0:
            gone = organisations.c.name == name
            connection.execute(update(organisations).where(gone).values(removed_at_ms=now_ms))
            changes.append((f"organisation {name}", name, {"removed_at_ms": 0}, {"removed_at_ms": now_ms}))
            changes += _record_limits(connection, name, Definitions())
    return changes


def _record_shards(connection: Connection, shards: int) -> list[Change]:
    return [
        (f"organisation {name}", name, {"shard": before}, {"shard": after})
        for name, (before, after) in sorted(assign(connection, shards).items())
    ]


def _record_limits(connection: Connection, name: str, definitions: Definitions) -> list[Change]:
    known = {row.id: row for row in connection.execute(select(limits).where(limits.c.organisation == name))}
    wanted = {limit_id(limit): limit for limit in definitions.limits}
    changes: list[Change] = []
    for each in sorted({*known, *wanted}):
        here = and_(limits.c.organisation == name, limits.c.id == each)
        limit, row = wanted.get(each), known.get(each)
        if limit is None:
            connection.execute(delete(limits).where(here))
        elif row is None or row.cap != limit.cap:
            _put(connection, limits, here, {"organisation": name, "id": each, **_columns(limit)})
        else:
            continue
        before, after = (None if row is None else row.cap), (None if limit is None else limit.cap)
        changes.append((f"limit {each}", name, {"cap": before}, {"cap": after}))
    _record_teams(connection, name, wanted)
    return changes


def _record_teams(connection: Connection, name: str, wanted: Mapping[str, Limit]) -> None:
    """The teams that have limits: a column of their own for those who join usage with them."""
    prefix = f"{name}:team:"
    named = {limit.owner.removeprefix(prefix) for limit in wanted.values() if limit.owner.startswith(prefix)}
    known = set(connection.execute(select(teams.c.name).where(teams.c.organisation == name)).scalars())
    for team in sorted(named - known):
        connection.execute(insert(teams).values(organisation=name, name=team))
    for team in known - named:
        connection.execute(delete(teams).where(teams.c.organisation == name, teams.c.name == team))


def _columns(limit: Limit) -> dict[str, Any]:
    return {
        "owner": limit.owner,
        "metric": limit.metric.value,
        "kind": limit.kind.value,
        "period_ms": limit.period_ms,
        "anchor_ms": limit.anchor_ms,
        "model": limit.model,
        "cap": limit.cap,
    }


def _put(connection: Connection, table: Table, here: ColumnElement[bool], row: dict[str, Any]) -> None:
    connection.execute(delete(table).where(here))
    connection.execute(insert(table).values(**row))


def _models(connection: Connection) -> dict[str, Model]:
    newest = _newest_prices(connection)
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


def _newest_prices(connection: Connection) -> dict[str, Price]:
    rows = connection.execute(select(prices).order_by(prices.c.model, prices.c.since_ms))
    return {row.model: Price(**{each: getattr(row, each) for each in _PICOS}) for row in rows}
