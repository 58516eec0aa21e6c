"""Every check, in order of importance, and what becomes of those that cannot be made.

A service that is out of reach is one finding: the checks that need it are told as unseen, not as wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError

from penstock.adapters.redis.client import pack
from penstock.adapters.redis.wire import Refusal
from penstock.errors import PenstockError, StoreUnavailable
from penstock.lanes.diagnosis import Diagnosis, Finding, Unseen, in_order, wrong
from penstock.wiring.doctoring.certificates import check_certificates
from penstock.wiring.doctoring.clocks import check_clocks
from penstock.wiring.doctoring.database_file import check_database_file
from penstock.wiring.doctoring.files import check_disk, check_secrets, check_spool
from penstock.wiring.doctoring.gap import check_gap
from penstock.wiring.doctoring.ledger import check_definitions, check_drift, check_organisations, check_service
from penstock.wiring.doctoring.patient import Patient, cause_and_fix
from penstock.wiring.doctoring.postgresql import check_keeper, check_postgresql, check_results, check_schema
from penstock.wiring.doctoring.rabbitmq import (
    check_consumer_timeout,
    check_dead_letters,
    check_queues,
    check_rabbitmq,
    check_topology,
)
from penstock.wiring.doctoring.redis import check_functions, check_outbox, check_redis
from penstock.wiring.stores import Service

CHECK_S = 60.0
REACH = "stores"
CONFIGURATION = "configuration"
_REDIS, _POSTGRESQL, _RABBITMQ = (frozenset({service}) for service in Service)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is looked at.

    Args:
        name: As findings carry it.
        needs: The services without which it says nothing.
    """

    name: str
    look: Callable[[Patient], Awaitable[list[Finding]]]
    needs: frozenset[Service] = frozenset()


CLUSTER = (
    Check("drift", check_drift, _REDIS | _POSTGRESQL),
    Check("gap", check_gap, _REDIS | _POSTGRESQL),
    Check("keeper", check_keeper, _POSTGRESQL),
    Check("organisations", check_organisations, _REDIS | _POSTGRESQL),
    Check("functions", check_functions, _REDIS),
    Check("redis", check_redis, _REDIS),
    Check("postgresql", check_postgresql, _POSTGRESQL),
    Check("schema", check_schema, _POSTGRESQL),
    Check("rabbitmq", check_rabbitmq, _RABBITMQ),
    Check("topology", check_topology, _RABBITMQ),
    Check("outbox", check_outbox, _REDIS),
    Check("results", check_results, _POSTGRESQL),
    Check("queues", check_queues, _RABBITMQ),
    Check("spool", check_spool),
    Check("clocks", check_clocks, _REDIS | _POSTGRESQL),
    Check("certificates", check_certificates),
    Check("dead_letters", check_dead_letters, _RABBITMQ),
    Check("definitions", check_definitions, _POSTGRESQL),
    Check("consumer_timeout", check_consumer_timeout, _RABBITMQ),
    Check("secrets", check_secrets),
    Check("disk", check_disk),
)
EMBEDDED = (
    Check("database", check_database_file),
    Check("drift", check_drift),
    Check("schema", check_schema),
    Check("service", check_service),
    Check("definitions", check_definitions),
    Check("certificates", check_certificates),
    Check("secrets", check_secrets),
    Check("disk", check_disk),
)


def refused(problems: Sequence[str]) -> Diagnosis:
    """Of a configuration that cannot be used: nothing else can be looked at."""
    findings = [wrong(CONFIGURATION, *cause_and_fix(problem)) for problem in problems]
    return Diagnosis(mode="unknown", looked=(CONFIGURATION,), findings=findings, unseen=())


async def examine(patient: Patient) -> Diagnosis:
    """Look at everything; nothing is written anywhere.

    Raises:
        ConfigurationError: A reference without which nothing can be looked at leads nowhere.
    """
    is_cluster = patient.configuration.stores is not None
    checks = CLUSTER if is_cluster else EMBEDDED
    findings = await _unreached(patient) if is_cluster else {}
    away = frozenset(findings)
    outcomes: list[Finding] = list(findings.values())
    unseen: list[Unseen] = []
    looked = [CONFIGURATION, *([REACH] if is_cluster else [])]
    for check in checks:
        if check.needs & away:
            unseen.append(Unseen(check=check.name, why=f"{', '.join(sorted(check.needs & away))} is out of reach"))
            continue
        found = await _made(check, patient)
        if isinstance(found, Unseen):
            unseen.append(found)
        else:
            looked.append(check.name)
            outcomes += found
    names = [CONFIGURATION, REACH, *(check.name for check in checks)]
    mode = "cluster" if is_cluster else "embedded"
    return Diagnosis(mode=mode, looked=looked, findings=in_order(outcomes, names), unseen=unseen)


async def _made(check: Check, patient: Patient) -> list[Finding] | Unseen:
    try:
        async with asyncio.timeout(CHECK_S):
            return await check.look(patient)
    except TimeoutError:
        return Unseen(check=check.name, why=f"no answer within {CHECK_S:.0f} s")
    except PenstockError as error:
        return Unseen(check=check.name, why=error.message)
    except (DBAPIError, Refusal) as error:
        reason = " ".join(str(getattr(error, "orig", error)).split())
        return Unseen(check=check.name, why=f"refused: {reason}; give stores.<service>.password, of `penstock setup`")


async def _unreached(patient: Patient) -> dict[Service, Finding]:
    """Those services that do not answer, each with its finding."""
    found: dict[Service, Finding] = {}
    for service, reach in ((Service.REDIS, _redis), (Service.POSTGRESQL, _postgresql), (Service.RABBITMQ, _rabbitmq)):
        try:
            await reach(patient)
        except (StoreUnavailable, Refusal) as error:
            found[service] = wrong(REACH, *cause_and_fix(str(error)))
    return found


async def _redis(patient: Patient) -> None:
    for at in await patient.redis_addresses():
        async with patient.redis(at) as client:
            await client.ask(pack("PING"))


async def _postgresql(patient: Patient) -> None:
    await patient.ask_database(lambda connection: None)


async def _rabbitmq(patient: Patient) -> None:
    async with patient.management() as api:
        await api.ask("GET", "whoami")
