"""What governs requests, carried over from the configuration into the database, which every process reads.

A change raises the version that keys raise too, writes the audit log in its own transaction, and leaves what did not
change alone; carrying the same over again changes nothing. What the configuration owns becomes as it says; what it
only seeds is written once, and then belongs to administrators.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Table, and_, delete, func, insert, select, update

from penstock.adapters.sql.audit_log import record
from penstock.adapters.sql.database import writing
from penstock.adapters.sql.definition_rows import (
    PICOS,
    limit_columns,
    models_in_force,
    organisations_without_keys,
    prices_in_force,
)
from penstock.adapters.sql.definition_tables import limits, models, organisations, prices, teams
from penstock.adapters.sql.keys import raise_version
from penstock.adapters.sql.shards import assign
from penstock.quota.definitions import Definitions, Limit, Model, Price
from penstock.quota.limits import limit_id

FILE, API = "file", "api"  # who manages a record


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a configuration says beside definitions.

    Args:
        models: Where no organisation is named that would bring them.
        seeded: Organisations whose records belong to administrators once they are there.
        seeded_prices: Models of which the price does.
        teams: By organisation; those that have limits need not be named.
        kept_ms: By organisation: how long results and idempotent answers are kept, None as for everybody.
    """

    models: Mapping[str, Model] = field(default_factory=dict)
    seeded: Collection[str] = ()
    seeded_prices: Collection[str] = ()
    teams: Mapping[str, Collection[str]] = field(default_factory=dict)
    kept_ms: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)


def record_definitions(
    engine: Engine,
    definitions: Mapping[str, Definitions],
    *,
    shards: int,
    now_ms: int,
    actor: str,
    written: Written = Written(),
) -> bool:
    """Make these the definitions of these organisations; tells whether anything changed.

    An organisation that is not named any more keeps its row and its keys, and has nothing left that it may use,
    unless administrators manage it.

    Args:
        definitions: By organisation; keys and shards in it are not looked at. Every one names the same models.
        shards: How many work queues each model has.
        actor: Who carries them over, for the audit log.
    """
    with writing(engine) as connection:
        version = raise_version(connection)  # first: whoever else records waits here
        managed = _managers(connection, organisations)
        settled = {name for name in written.seeded if name in managed}  # seeded before, so not touched again
        changes = [
            *_record_models(connection, definitions, written, now_ms=now_ms),
            *_hand_over(connection, settled, managed),
            *_record_organisations(connection, definitions, written, settled, now_ms=now_ms),
        ]
        for name, each in definitions.items():
            if name not in settled:
                changes += _record_limits(connection, name, each)
                changes += _record_teams(connection, name, each, written.teams.get(name, ()))
        changes += _record_shards(connection, shards)
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
        return organisations_without_keys(connection)


Change = tuple[str, str | None, Any, Any]  # subject, organisation, before, after


def _record_models(
    connection: Connection, definitions: Mapping[str, Definitions], written: Written, *, now_ms: int
) -> list[Change]:
    wanted = dict(written.models)
    wanted |= {name: model for each in definitions.values() for name, model in each.models.items()}
    known = models_in_force(connection)
    managed = _managers(connection, models)
    newest = prices_in_force(connection)
    changes: list[Change] = []
    for name in sorted({*wanted, *known}):
        before, after = known.get(name), wanted.get(name)
        here = models.c.name == name
        if after is None:
            connection.execute(delete(models).where(here))
            changes.append((f"model {name}", None, before, None))
            continue
        manager = API if name in written.seeded_prices else FILE
        price = newest[name] if manager == API and name in known else after.price
        sizes = {each: getattr(after, each) for each in ("context", "template_tokens", "tokens_per_byte_max")}
        is_same = before is not None and all(getattr(before, each) == sizes[each] for each in sizes)
        if is_same and managed[name] == manager and newest[name] == price:
            continue
        _put(connection, models, here, {"name": name, "managed_by": manager, **sizes})
        if manager == FILE:  # what was planned belongs to administrators, who have no say any more
            connection.execute(delete(prices).where(prices.c.model == name, prices.c.in_force.is_(False)))
        if newest.get(name) != price:
            _add_price(connection, name, price, now_ms=now_ms)
        seen = None if before is None else {"managed_by": managed[name], **_shown(before)}
        changes.append((f"model {name}", None, seen, {"managed_by": manager, **sizes, "price": price}))
    return changes


def _managers(connection: Connection, table: Table) -> dict[str, str]:
    return {row.name: row.managed_by for row in connection.execute(select(table.c.name, table.c.managed_by))}


def _shown(model: Any) -> dict[str, Any]:
    return {each: getattr(model, each) for each in ("context", "template_tokens", "tokens_per_byte_max", "price")}


def _add_price(connection: Connection, model: str, price: Price, *, now_ms: int) -> None:
    newest = select(func.max(prices.c.since_ms)).where(prices.c.model == model)
    last_ms = connection.execute(newest).scalar() or 0
    since_ms = max(now_ms, last_ms + 1)  # two changes within a millisecond are two rows
    picos = {each: getattr(price, each) for each in PICOS}
    connection.execute(insert(prices).values(model=model, since_ms=since_ms, in_force=True, **picos))


def _hand_over(connection: Connection, settled: Collection[str], managed: Mapping[str, str]) -> list[Change]:
    """Organisations that the configuration owned until now, and that administrators manage from now on."""
    handed = sorted(name for name in settled if managed[name] != API)
    for name in handed:
        connection.execute(update(organisations).where(organisations.c.name == name).values(managed_by=API))
    return [(f"organisation {name}", name, {"managed_by": FILE}, {"managed_by": API}) for name in handed]


def _record_organisations(
    connection: Connection,
    definitions: Mapping[str, Definitions],
    written: Written,
    settled: Collection[str],
    *,
    now_ms: int,
) -> list[Change]:
    known = {row.name: row for row in connection.execute(select(organisations))}
    changes: list[Change] = []
    for name, each in definitions.items():
        if name in settled:
            continue
        row = known.get(name)
        results_ms, answers_ms = written.kept_ms.get(name, (None, None))
        policy = {
            "reserve": each.reserve.value,
            "overrun": each.overrun.value,
            "removed_at_ms": 0,
            "managed_by": API if name in written.seeded else FILE,
            "results_ms": results_ms,
            "answers_ms": answers_ms,
        }
        before = None if row is None else {field: getattr(row, field) for field in policy}
        if before == policy:
            continue
        created_at_ms = now_ms if row is None else row.created_at_ms
        shard = {} if row is None else {"shard": row.shard}
        values = {"name": name, "created_at_ms": created_at_ms, **policy, **shard}
        _put(connection, organisations, organisations.c.name == name, values)
        changes.append((f"organisation {name}", name, before, policy))
    for name in known.keys() - definitions.keys():
        if known[name].removed_at_ms == 0 and known[name].managed_by == FILE:
            gone = organisations.c.name == name
            connection.execute(update(organisations).where(gone).values(removed_at_ms=now_ms))
            changes.append((f"organisation {name}", name, {"removed_at_ms": 0}, {"removed_at_ms": now_ms}))
            changes += _record_limits(connection, name, Definitions())
            changes += _record_teams(connection, name, Definitions(), ())
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
            _put(connection, limits, here, {"organisation": name, "id": each, **limit_columns(limit)})
        else:
            continue
        before, after = (None if row is None else row.cap), (None if limit is None else limit.cap)
        changes.append((f"limit {each}", name, {"cap": before}, {"cap": after}))
    return changes


def _record_teams(connection: Connection, name: str, definitions: Definitions, named: Collection[str]) -> list[Change]:
    prefix = f"{name}:team:"
    wanted = {*named, *teams_with_limits(definitions.limits, prefix)}
    known = set(connection.execute(select(teams.c.name).where(teams.c.organisation == name)).scalars())
    for team in wanted - known:
        connection.execute(insert(teams).values(organisation=name, name=team))
    for team in known - wanted:
        connection.execute(delete(teams).where(teams.c.organisation == name, teams.c.name == team))
    return [
        *((f"team {team}", name, None, {}) for team in sorted(wanted - known)),
        *((f"team {team}", name, {}, None) for team in sorted(known - wanted)),
    ]


def teams_with_limits(found: Collection[Limit], prefix: str) -> set[str]:
    """The teams that limits belong to, whose owners begin with ``prefix``."""
    return {limit.owner.removeprefix(prefix) for limit in found if limit.owner.startswith(prefix)}


def _put(connection: Connection, table: Table, here: ColumnElement[bool], row: dict[str, Any]) -> None:
    connection.execute(delete(table).where(here))
    connection.execute(insert(table).values(**row))
