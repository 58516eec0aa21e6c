"""The clocks of this machine, of Redis and of PostgreSQL: a caller whose clock differs by 30 s is refused."""

from __future__ import annotations

from sqlalchemy import text

from penstock.adapters.redis.client import RedisClient, pack
from penstock.lanes.diagnosis import Finding, warning, wrong
from penstock.wiring.doctoring.patient import Patient

REFUSED_MS = 30_000
LARGE_MS = 5_000
_NOW = text("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)")


async def check_clocks(patient: Patient) -> list[Finding]:
    """None differs from this machine's by as much as 5 s."""
    theirs: dict[str, int] = {}
    for at in await patient.redis_addresses():
        async with patient.redis(at) as client:
            theirs[str(at)] = await _of_redis(patient, client)
    before_ms = patient.clock.now_ms()
    found: int = await patient.ask_database(lambda connection: connection.execute(_NOW).scalar_one())
    theirs["PostgreSQL"] = found - (before_ms + patient.clock.now_ms()) // 2
    return [finding for name, by_ms in theirs.items() for finding in judged(name, by_ms)]


async def _of_redis(patient: Patient, client: RedisClient) -> int:
    before_ms = patient.clock.now_ms()
    seconds, micros = await client.ask(pack("TIME"))
    return int(seconds) * 1000 + int(micros) // 1000 - (before_ms + patient.clock.now_ms()) // 2


def judged(name: str, by_ms: int) -> list[Finding]:
    """What a clock that is ahead of ours by so much means.

    Example:
        >>> [each.severity.name for by_ms in (-4_999, 5_000, -30_000) for each in judged("redis", by_ms)]
        ['WARNING', 'WRONG']
    """
    if abs(by_ms) < LARGE_MS:
        return []
    what = f"the clock of {name} is {abs(by_ms) / 1000:.1f} s {'ahead of' if by_ms > 0 else 'behind'} this machine's"
    fix = "set both by NTP: `timedatectl set-ntp true`, then `timedatectl timesync-status`"
    if abs(by_ms) < REFUSED_MS:
        return [warning("clocks", what, fix)]
    return [wrong("clocks", f"{what}; from 30 s on the quota refuses every call", fix)]
