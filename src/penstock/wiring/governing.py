"""Keeps what governs requests up to date while the service runs: limits, models and prices, and the database's keys.

Keys change under a running service, from the command line. Their table has a version; once a second it is read,
and a new one is defined for every organisation, so that a revoked key is refused within that second. In a cluster
``penstock setup`` writes the limits beside the keys, and raises the same version.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from penstock.adapters.sql.keys import Keys
from penstock.adapters.sql.watching import watch
from penstock.config import Configuration, definitions
from penstock.lanes.credentials import Credential
from penstock.ports import Clock, QuotaStore
from penstock.quota.admitting import is_valid
from penstock.quota.definitions import Definitions, Key, Overrun
from penstock.quota.operations import Define, Refused

_log = logging.getLogger(__name__)


def in_file(configuration: Configuration) -> Mapping[str, Definitions]:
    """What a configuration says of each organisation."""
    return {name: definitions(configuration, name) for name in configuration.organisations}


class Governing:
    """The definitions of every organisation, current as of ``version``.

    Args:
        organisations: What governs each but its keys, as of now; asked after each change of the version.
        keys: The table of keys.
    """

    def __init__(self, organisations: Callable[[], Mapping[str, Definitions]], keys: Keys, clock: Clock) -> None:
        self._organisations = organisations
        self._keys = keys
        self._clock = clock
        self._version = 0
        self.current: dict[str, Definitions] = {}
        self.read()

    @property
    def version(self) -> int:
        """Of ``current``; at least 1, and higher after each change of the keys."""
        return self._version

    def read(self) -> bool:
        """Read everything if it changed since; tells whether they did. Waits for the database."""
        version = self._keys.version() + 1
        if version == self._version:
            return False
        organisations = self._organisations()
        found: dict[str, dict[str, Key]] = {name: {} for name in organisations}
        for stored in self._keys.list():
            if stored.organisation in found:
                found[stored.organisation][stored.key.id] = stored.key
        self.current = {name: replace(each, keys=found[name]) for name, each in organisations.items()}
        self._version = version
        return True

    def overrun(self, organisation: str) -> Overrun:
        """What a stream of this organisation does that outgrows a learned hold."""
        return self.current[organisation].overrun

    async def watch(self, quota: QuotaStore) -> None:
        """Define each change of the keys, within about a second, until cancelled."""

        async def changed(_version: int) -> None:
            if await asyncio.to_thread(self.read):
                await self._define(quota)

        await watch(self._keys, changed, known=self._version - 1)

    async def _define(self, quota: QuotaStore) -> None:
        for name, each in self.current.items():
            answer = await quota.apply(
                Define(organisation=name, caller_now_ms=self._clock.now_ms(), version=self._version, definitions=each)
            )
            if isinstance(answer, Refused):
                _log.error("definitions refused", extra={"organisation": name, "why": answer.why})
        _log.info("keys changed", extra={"version": self._version})

    async def check(self, credential: Credential) -> Key | None:
        """The key, if it is right now; see ``penstock.api.KeyCheck``."""
        governing = self.current.get(credential.organisation)
        key = None if governing is None else governing.key(credential.key)
        now_ms = self._clock.now_ms()
        is_right = key is not None and any(is_valid(key, mac, now_ms) for mac in credential.macs)
        return credential.narrowed(key) if key is not None and is_right else None
