"""What Redis has charged and the ledger does not have: the gap that an old backup of the database leaves.

Redis remembers what ended in the last quarter of an hour, so that is how far back single reservations can be named;
beyond that the audit tells how much is missing, by limit. They are looked at in an order in which nothing that is
merely on its way can be taken for missing::

    ids that Redis remembers -> not in the ledger -> charged in Redis -> not in the outbox -> still not in the ledger
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from sqlalchemy import Connection, select

from penstock.adapters.redis.client import pack
from penstock.adapters.redis.cluster import Client, client_of
from penstock.adapters.redis.store import GOVERNING_S
from penstock.adapters.redis.translating import keys_of, partition_of
from penstock.adapters.sql.definition_rows import organisations_without_keys
from penstock.adapters.sql.tables import ledger
from penstock.lanes.diagnosis import Finding, wrong
from penstock.quota.events import CHARGING, ENDING
from penstock.quota.identity import created_at_ms
from penstock.quota.operations import Look, Seen, State
from penstock.wiring.doctoring.patient import Patient
from penstock.wiring.quota import open_outbox, open_quota, redis_address
from penstock.wiring.stores import Role, Service

IDS_MAX = 20_000
IDS_AT_ONCE = 500
SHOWN = 20
_ENDS = [kind.value for kind in ENDING]  # one that the ledger has as voided is not missing, whatever Redis says
_CHARGED = tuple(State(kind.value) for kind in CHARGING)


async def check_gap(patient: Patient) -> list[Finding]:
    """Every reservation that Redis has charged of late is in the ledger, or on its way there."""
    address = redis_address(patient.configuration, patient.role(Service.REDIS))
    client = client_of(address, name="penstock-doctor-gap", bound_s=GOVERNING_S)
    findings: list[Finding] = []
    try:
        await client.start()
        for name in sorted(await patient.ask_database(organisations_without_keys)):
            if missing := await missing_of(patient, client, name):
                findings.append(_told(name, missing))
    finally:
        await client.close()
    return findings


async def missing_of(patient: Patient, client: Client, organisation: str) -> list[str]:
    """Reservations of an organisation that Redis has charged and the ledger will never have, sorted."""
    suspects = await _not_in_ledger(patient, organisation, await _remembered(client, organisation))
    if not suspects:
        return []
    charged = await _charged(patient, organisation, suspects)
    partition = partition_of(organisation)
    on_their_way: set[str] = set()
    async with open_outbox(patient.configuration, Role.API) as outbox:
        last: dict[int, str] = {}
        while page := await outbox.read(last, partitions=(partition,)):
            last = {partition: page[partition][-1].id}
            on_their_way |= {entry.event.reservation for entry in page[partition]}
    return await _not_in_ledger(patient, organisation, sorted(charged - on_their_way))


async def _remembered(client: Client, organisation: str) -> list[str]:
    """The newest of the ids that Redis has, open or ended."""
    found: list[str] = []
    cursor = b"0"
    while True:
        key = keys_of(organisation)[1]
        cursor, fields = await client.ask(pack("HSCAN", key, cursor, "COUNT", IDS_AT_ONCE), organisation)
        found += [field.decode() for field in fields[::2]]
        if cursor == b"0":
            return sorted(set(found))[-IDS_MAX:]


async def _not_in_ledger(patient: Patient, organisation: str, ids: Iterable[str]) -> list[str]:
    wanted = list(ids)

    def look(connection: Connection) -> list[str]:
        known: set[str] = set()
        for start in range(0, len(wanted), IDS_AT_ONCE):
            some, row = wanted[start : start + IDS_AT_ONCE], ledger.c
            ends = (row.organisation == organisation, row.reservation.in_(some), row.kind.in_(_ENDS))
            known |= set(connection.execute(select(row.reservation).where(*ends)).scalars())
        return [each for each in wanted if each not in known]

    return await patient.ask_database(look)


async def _charged(patient: Patient, organisation: str, ids: Iterable[str]) -> set[str]:
    charged = set()
    async with open_quota(patient.configuration, Role.API) as quota:
        for each in ids:
            call = Look(organisation=organisation, caller_now_ms=patient.clock.now_ms(), reservation=each)
            seen = await quota.apply(call)
            if isinstance(seen, Seen) and seen.state in _CHARGED:
                charged.add(each)
    return charged


def _told(organisation: str, missing: list[str]) -> Finding:
    first, last = (_instant(created_at_ms(each)) for each in (missing[0], missing[-1]))
    named = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
    what = (
        f"{organisation}: Redis has charged {len(missing)} reservations that the ledger does not have, begun from "
        f"{first} to {last} (of the last quarter of an hour; what was before is in the audit's differences): {named}"
    )
    fix = (
        "was the database restored from a backup? restore it to a later time if its log was archived; else bill them "
        "from the API's log, `penstock ledger correct`, then `penstock rebuild --force`: docs/04-operations/backup.md"
    )
    return wrong("gap", what, fix)


def _instant(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
