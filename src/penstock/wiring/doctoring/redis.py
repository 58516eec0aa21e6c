"""Checks of Redis: whether it can be trusted with a quota, has the functions, and hands on what happened."""

from __future__ import annotations

from penstock.adapters.redis.checking import check_server, library_problems, read_info
from penstock.adapters.redis.client import pack
from penstock.adapters.redis.outbox import Outbox
from penstock.errors import ConfigurationError
from penstock.lanes.diagnosis import Finding, warning, wrong
from penstock.wiring.doctoring.patient import Patient, cause_and_fix
from penstock.wiring.quota import open_outbox
from penstock.wiring.stores import Role

MEMORY_SHARE_MAX = 0.9
LAG_LONG_MS = 60_000
LAG_TOO_LONG_MS = 600_000


async def check_redis(patient: Patient) -> list[Finding]:
    """Reached, recent enough, never evicting, and on its disk; for each primary."""
    findings: list[Finding] = []
    for at in await patient.redis_addresses():
        async with patient.redis(at) as client:
            try:
                await check_server(client, check_functions=False)
            except ConfigurationError as error:
                findings += [wrong("redis", *cause_and_fix(problem)) for problem in error.problems]
            told = read_info(await client.ask(pack("INFO", "everything")))
        findings += standing_problems(str(at), told)
    return findings


def standing_problems(name: str, told: dict[str, str]) -> list[Finding]:
    """What ``INFO`` tells of a server that was right when it started.

    Example:
        >>> [each.what for each in standing_problems("redis://a", {"aof_last_write_status": "err"})]
        ['redis://a: the last write of its append-only file failed']
    """
    findings = []
    if told.get("aof_last_write_status", "ok") != "ok":
        what = f"{name}: the last write of its append-only file failed"
        findings.append(wrong("redis", what, "free its disk; until then it refuses writes"))
    used, most = int(told.get("used_memory", 0)), int(told.get("maxmemory", 0))
    if most and used > MEMORY_SHARE_MAX * most:
        what = f"{name}: {used // 1_000_000:,} MB of maxmemory {most // 1_000_000:,} MB are used"
        findings.append(warning("redis", what, "raise maxmemory; when it is reached, nothing is admitted"))
    return findings


async def check_functions(patient: Patient) -> list[Finding]:
    """The function library is there, and not older than this penstock."""
    findings: list[Finding] = []
    for at in await patient.redis_addresses():
        async with patient.redis(at) as client:
            problems = await library_problems(client)
        findings += [wrong("functions", *cause_and_fix(problem)) for problem in problems]
    return findings


async def check_outbox(patient: Patient) -> list[Finding]:
    """What happened reaches the ledger within a minute."""
    async with open_outbox(patient.configuration, Role.API) as outbox:
        oldest_ms = await _oldest_ms(outbox)
    if oldest_ms is None:
        return []
    age_ms = patient.clock.now_ms() - oldest_ms
    what = f"the oldest event in Redis' outbox is {age_ms // 1000} s old, and not billed before the ledger has it"
    fix = "see the log of the active `penstock keeper`; if none runs, start one"
    if age_ms > LAG_TOO_LONG_MS:
        return [wrong("outbox", what, fix)]
    return [warning("outbox", what, fix)] if age_ms > LAG_LONG_MS else []


async def _oldest_ms(outbox: Outbox) -> int | None:
    found = await outbox.read(count_max=1)
    return min((entries[0].event.occurred_at_ms for entries in found.values()), default=None)
