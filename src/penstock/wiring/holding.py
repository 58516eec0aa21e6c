"""What is held at this moment, as a service tells it and a command asks for it.

Apart from the audit, which compares every counter with the ledger: this reads no ledger, so it is quick however long
that is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from penstock.adapters.sql.definition_rows import teams_by_organisation
from penstock.config import Configuration
from penstock.errors import StoreUnavailable
from penstock.lanes.inspecting import inspect
from penstock.ports import QuotaStore
from penstock.quota.operations import NotReady
from penstock.wiring.clock import SystemClock
from penstock.wiring.database import cluster_engine
from penstock.wiring.places import Places
from penstock.wiring.quota import open_quota
from penstock.wiring.running import ask
from penstock.wiring.stores import Role

PATH = "/holds"


@dataclass(frozen=True, slots=True)
class Held:
    """One organisation's open reservations, and the tokens that they hold."""

    requests: int
    tokens: int


async def held_now(quota: QuotaStore, organisations: Iterable[str], *, now_ms: int) -> dict[str, Held]:
    """What each organisation holds.

    Raises:
        StoreUnavailable: An organisation's state cannot be read, or is not ready.
    """
    found = {}
    for name in organisations:
        read = await inspect(quota, name, now_ms=now_ms)
        if isinstance(read, NotReady):
            raise StoreUnavailable(f"{name}: its quota state is not ready; try again")
        holds = read.inspected.holds
        found[name] = Held(len(holds), sum(hold.tokens_held for hold in holds))
    return found


async def held_in_cluster(configuration: Configuration) -> dict[str, Held]:
    """What each organisation of a cluster holds, those that administrators added too. Raises like ``held_now``."""
    engine = cluster_engine(configuration, Role.API)
    try:
        names = await asyncio.to_thread(teams_by_organisation, engine)
    finally:
        engine.dispose()
    async with open_quota(configuration, Role.API) as quota:
        return await held_now(quota, names, now_ms=SystemClock().now_ms())


def ask_held(places: Places) -> dict[str, Held] | None:
    """What the service that runs here says; None if none runs, and so nothing is held.

    Raises:
        StoreUnavailable: A service runs, and does not answer this.
    """
    answer = ask(places, PATH)
    if answer is None:
        return None
    try:
        return msgspec.json.decode(answer, type=dict[str, Held])
    except msgspec.DecodeError as error:
        raise StoreUnavailable(
            f"the service's answer does not say what is held: {error}; is it of the same version?"
        ) from error
