"""The records that administrators change: organisations, teams, limits, prices. Keys are in ``key_rows``.

One transaction holds a look or a change whole. Each change raises the version first, so that changes queue up there,
and what one was made from cannot be overtaken; it ends with a check that the quota can work with the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, and_, delete, insert, or_, select, update

from penstock.adapters.sql.administering_keys import KeyRecords
from penstock.adapters.sql.audit_log import page_of_entries
from penstock.adapters.sql.definition_rows import PICOS, limit_columns, limit_of, organisations_with_keys, price_of
from penstock.adapters.sql.definition_tables import limits, models, organisations, prices, teams
from penstock.adapters.sql.definitions import API, FILE
from penstock.adapters.sql.key_rows import all_keys
from penstock.adapters.sql.shards import assign
from penstock.adapters.sql.tables import ledger
from penstock.errors import Conflict, InvalidRequest, NotFound
from penstock.lanes.administering import (
    AuditQuery,
    AuditRecord,
    By,
    LimitRecord,
    OrganisationRecord,
    PriceRecord,
    check_tag,
)
from penstock.quota.definitions import Limit, Overrun, ReservePolicy
from penstock.quota.plans import fault_in

_organisation, _limit, _price = organisations.c, limits.c, prices.c


class SqlRecords(KeyRecords):
    """``penstock.lanes.administering.Records`` in the transaction of ``connection``."""

    def __init__(self, connection: Connection, *, shards: int) -> None:
        super().__init__(connection)
        self._connection = connection
        self._shards = shards

    # --- organisations ---------------------------------------------------------------------------------------

    def organisations(self, *, after: str, count_max: int) -> Sequence[OrganisationRecord]:
        """By name, as all lists here by what ``after`` is compared with."""
        statement = select(organisations).where(_organisation.removed_at_ms == 0, _organisation.name > after)
        rows = self._connection.execute(statement.order_by(_organisation.name).limit(count_max))
        return [_organisation_of(row) for row in rows]

    def organisation(self, name: str) -> OrganisationRecord:
        """One that is not removed."""
        statement = select(organisations).where(_organisation.name == name, _organisation.removed_at_ms == 0)
        row = self._connection.execute(statement).one_or_none()
        if row is None:
            raise NotFound("there is no such organisation, or it is not yours", code="organisation_not_found")
        return _organisation_of(row)

    def create_organisation(self, record: OrganisationRecord, limits: Sequence[Limit], by: By) -> OrganisationRecord:
        """Add one, or bring one back that was removed: its counters go on."""
        known = self._connection.execute(select(organisations).where(_organisation.name == record.name)).one_or_none()
        if known is not None and known.removed_at_ms == 0:
            raise Conflict(f"there is an organisation {record.name} already; change that, or choose another name")
        if known is None and self._has_figures(record.name):
            raise Conflict(
                f"the ledger has figures of an earlier organisation {record.name}; choose another name, or bring that "
                "one back by naming it in the configuration file"
            )
        fields = _columns(record)
        if known is None:
            self._connection.execute(
                insert(organisations).values(
                    name=record.name, created_at_ms=by.now_ms, removed_at_ms=0, managed_by=API, **fields
                )
            )
        else:
            self._connection.execute(
                update(organisations)
                .where(_organisation.name == record.name)
                .values(removed_at_ms=0, managed_by=API, **fields)
            )
        assign(self._connection, self._shards)
        created = self.organisation(record.name)
        self._audit(by, "organisations.create", record.name, f"organisation {record.name}", None, created)
        for each in limits:
            self.create_limit(LimitRecord(organisation=record.name, limit=each), by)
        return created

    def change_organisation(self, name: str, fields: dict[str, Any], by: By) -> OrganisationRecord:
        """Set some of its fields."""
        before = self._owned(name)
        check_tag(before, by)
        wanted = replace(before, **fields)
        self._connection.execute(update(organisations).where(_organisation.name == name).values(**_columns(wanted)))
        after = self.organisation(name)
        self._audit(by, "organisations.change", name, f"organisation {name}", before, after)
        self._check(name)
        return after

    def remove_organisation(self, name: str, by: By) -> None:
        """Its limits and teams go, its keys may use nothing."""
        before = self._owned(name)
        check_tag(before, by)
        gone = [*self.teams(name), *(each.id for each in self.limits(name))]
        self._connection.execute(
            update(organisations).where(_organisation.name == name).values(removed_at_ms=by.now_ms)
        )
        self._connection.execute(delete(limits).where(_limit.organisation == name))
        self._connection.execute(delete(teams).where(teams.c.organisation == name))
        self._audit(by, "organisations.remove", name, f"organisation {name}", {"record": before, "with": gone}, None)

    def _has_figures(self, name: str) -> bool:
        return (
            self._connection.execute(select(ledger.c.month).where(ledger.c.organisation == name).limit(1)).first()
            is not None
        )

    def _owned(self, name: str) -> OrganisationRecord:
        """One that administrators manage."""
        found = self.organisation(name)
        if found.managed_by == FILE:
            raise Conflict(
                f"{name}: the configuration file owns this organisation; change it there, then run `penstock setup` "
                f"or start the service again, or let administrators have it: organisations.{name}.managed_by: api",
                code="managed_by_file",
            )
        return found

    # --- teams -----------------------------------------------------------------------------------------------

    def teams(self, organisation: str) -> Sequence[str]:
        """All of an organisation."""
        self.organisation(organisation)
        statement = select(teams.c.name).where(teams.c.organisation == organisation).order_by(teams.c.name)
        return list(self._connection.execute(statement).scalars())

    def create_team(self, organisation: str, team: str, by: By) -> str:
        """Add one."""
        self._owned(organisation)
        if team in self.teams(organisation):
            raise Conflict(f"{organisation}: there is a team {team} already; choose another name")
        self._connection.execute(insert(teams).values(organisation=organisation, name=team))
        self._audit(by, "teams.create", organisation, f"team {team}", None, {"name": team})
        return team

    def remove_team(self, organisation: str, team: str, by: By) -> None:
        """With its limits."""
        self._owned(organisation)
        self._team(organisation, team)
        used = [each.key.id for each in all_keys(self._connection, organisation) if each.key.team == team]
        live = [each for each in used if not self.key(organisation, each).key.revoked]
        if live:
            raise Conflict(f"{organisation}: keys {', '.join(live)} belong to team {team}; revoke or move them first")
        self._connection.execute(delete(teams).where(teams.c.organisation == organisation, teams.c.name == team))
        owned = [each for each in self.limits(organisation) if each.limit.owner == f"{organisation}:team:{team}"]
        for each in owned:
            self.remove_limit(organisation, each.id, replace(by, tag=None))
        self._audit(by, "teams.remove", organisation, f"team {team}", {"name": team}, None)

    def _team(self, organisation: str, team: str) -> None:
        if team not in self.teams(organisation):
            raise NotFound(f"{organisation}: there is no team {team}", code="team_not_found")

    # --- limits ----------------------------------------------------------------------------------------------

    def limits(self, organisation: str) -> Sequence[LimitRecord]:
        """All of an organisation, its teams and its keys."""
        self.organisation(organisation)
        statement = select(limits).where(_limit.organisation == organisation).order_by(_limit.id)
        return [
            LimitRecord(organisation=organisation, limit=limit_of(row)) for row in self._connection.execute(statement)
        ]

    def limit(self, organisation: str, limit: str) -> LimitRecord:
        """One."""
        self.organisation(organisation)
        here = and_(_limit.organisation == organisation, _limit.id == limit)
        row = self._connection.execute(select(limits).where(here)).one_or_none()
        if row is None:
            raise NotFound(f"{organisation}: there is no such limit", code="limit_not_found")
        return LimitRecord(organisation=organisation, limit=limit_of(row))

    def create_limit(self, record: LimitRecord, by: By) -> LimitRecord:
        """Add one, of the organisation, a team or a key."""
        name = record.organisation
        self._owned(name)
        kind, _, below = record.limit.owner.removeprefix(name).removeprefix(":").partition(":")
        if kind == "team":
            self._team(name, below)
        elif kind == "key":
            self.key(name, below)
        model = record.limit.model
        if model is not None and self._connection.execute(select(models).where(models.c.name == model)).first() is None:
            raise InvalidRequest(f"model: there is no model {model}; /v1/models lists them", param="model")
        known = select(limits).where(_limit.organisation == name, _limit.id == record.id)
        if self._connection.execute(known).first() is not None:
            raise Conflict(f"{name}: there is a limit {record.id} already; change its cap")
        row = {"organisation": name, "id": record.id, **limit_columns(record.limit)}
        self._connection.execute(insert(limits).values(row))
        self._audit(by, "limits.create", name, f"limit {record.id}", None, {"cap": record.limit.cap})
        self._check(name)
        return record

    def change_cap(self, organisation: str, limit: str, cap: int, by: By) -> LimitRecord:
        """What is used and held stays; a lower cap may be overdrawn until its window ends."""
        self._owned(organisation)
        before = self.limit(organisation, limit)
        check_tag(before, by)
        here = and_(_limit.organisation == organisation, _limit.id == limit)
        self._connection.execute(update(limits).where(here).values(cap=cap))
        self._audit(by, "limits.change", organisation, f"limit {limit}", {"cap": before.limit.cap}, {"cap": cap})
        self._check(organisation)
        return self.limit(organisation, limit)

    def remove_limit(self, organisation: str, limit: str, by: By) -> None:
        """Take it away."""
        self._owned(organisation)
        before = self.limit(organisation, limit)
        check_tag(before, by)
        here = and_(_limit.organisation == organisation, _limit.id == limit)
        self._connection.execute(delete(limits).where(here))
        self._audit(by, "limits.remove", organisation, f"limit {limit}", {"cap": before.limit.cap}, None)

    def _check(self, name: str) -> None:
        fault = fault_in(name, organisations_with_keys(self._connection)[name])
        if fault is not None:
            raise InvalidRequest(f"{name}: {fault}")

    # --- prices ----------------------------------------------------------------------------------------------

    def prices(self, model: str | None, *, after: tuple[str, int], count_max: int) -> Sequence[PriceRecord]:
        """The history."""
        name, since_ms = after
        behind = or_(_price.model > name, and_(_price.model == name, _price.since_ms > since_ms))
        statement = select(prices).where(behind).order_by(_price.model, _price.since_ms).limit(count_max)
        if model is not None:
            statement = statement.where(_price.model == model)
        return [
            PriceRecord(model=row.model, since_ms=row.since_ms, price=price_of(row), in_force=row.in_force)
            for row in self._connection.execute(statement)
        ]

    def create_price(self, record: PriceRecord, by: By) -> PriceRecord:
        """In force at once if its moment is now."""
        row = self._connection.execute(select(models).where(models.c.name == record.model)).one_or_none()
        if row is None:
            raise NotFound(f"there is no model {record.model}; /v1/models lists them", code="model_not_found")
        if row.managed_by == FILE:
            raise Conflict(
                f"{record.model}: the configuration file owns its price; change it there, then run `penstock setup` or "
                f"start the service again, or let administrators have it: models.{record.model}.managed_by: api",
                code="managed_by_file",
            )
        known = self._connection.execute(
            select(prices).where(_price.model == record.model).order_by(_price.since_ms.desc()).limit(1)
        ).one_or_none()
        if known is not None and record.since_ms <= known.since_ms:
            raise Conflict(
                f"{record.model}: there is a price from {known.since_ms} on, and history is not rewritten; "
                "choose a later valid_from_ms"
            )
        picos = {each: getattr(record.price, each) for each in PICOS}
        in_force = record.since_ms <= by.now_ms
        self._connection.execute(
            insert(prices).values(model=record.model, since_ms=record.since_ms, in_force=in_force, **picos)
        )
        before = None if known is None else price_of(known)
        after = {"valid_from_ms": record.since_ms, **picos}
        self._audit(by, "prices.create", None, f"model {record.model}", before, after)
        for name, definitions in organisations_with_keys(self._connection).items():
            if (fault := fault_in(name, definitions)) is not None:
                raise InvalidRequest(f"{record.model}: {fault}")
        return replace(record, in_force=in_force)

    # --- the audit log ---------------------------------------------------------------------------------------

    def audit(self, query: AuditQuery) -> Sequence[AuditRecord]:
        """Newest first."""
        return page_of_entries(self._connection, query)


def _organisation_of(row: Any) -> OrganisationRecord:
    return OrganisationRecord(
        name=row.name,
        managed_by=row.managed_by,
        reserve=ReservePolicy(row.reserve),
        overrun=Overrun(row.overrun),
        created_at_ms=row.created_at_ms,
        results_ms=row.results_ms,
        answers_ms=row.answers_ms,
    )


def _columns(record: OrganisationRecord) -> dict[str, Any]:
    return {
        "reserve": record.reserve.value,
        "overrun": record.overrun.value,
        "results_ms": record.results_ms,
        "answers_ms": record.answers_ms,
    }
