"""Commands to one Redis that never hang: bounded, tried twice, and refused at once while Redis is away.

    connected -> (a wire is lost) -> connecting -> connected
                                     connecting -> away -> (probes in the background) -> connected

A command gets ``bound_s`` on the wire that is there, and once more on a new one. If that fails too, Redis is away:
every command is refused without waiting until a probe has reached it again. Whoever sends a command must be able to
send it twice: the first may have been carried out although its reply was lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

from penstock.adapters.redis.address import Address, Kind
from penstock.adapters.redis.sentinel import find_primary
from penstock.adapters.redis.wire import Refusal, Wire, WireLost
from penstock.adapters.redis.wire import pack as pack
from penstock.errors import StoreUnavailable

log = logging.getLogger("penstock.adapters.redis")

BOUND_S: Final = 0.15
ATTEMPTS: Final = 2
CONNECT_S: Final = 1.0
PROBE_FIRST_S: Final = 0.05
PROBE_MOST_S: Final = 1.0
RETRY_AFTER_MS: Final = 1000
# Redis itself is there, but carries out nothing, or nothing that writes: another connection may reach one that does.
_USELESS = frozenset({"LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "UNBLOCKED", "BUSY"})
_FAULTS = (OSError, WireLost)  # a TimeoutError is an OSError

_ASKS: Final = "if it asks for certificates of its clients, give `certificate` and `key` of stores.redis"
_ELSEWHERE = b"elsewhere"
Greet = Callable[[Wire], Awaitable[None]]
Restarted = Callable[[Wire, Callable[[str], bool]], Awaitable[None]]


async def nothing(*_: Any) -> None:
    """A hook that does nothing."""


def _all(_: str) -> bool:
    return True


class RedisClient:
    """One connection at a time, replaced when it is lost. To one server, or to the primary that sentinels name.

    Args:
        name: Shown by ``CLIENT LIST``.
        bound_s: The longest that one attempt at a command may take, in seconds; there are two.
        greet: Asked once of each new wire, before any command; its ``Refusal`` keeps the wire from being used.
        restarted: Told of each new wire that leads to another run of Redis than the one before, and of whom that has.
        serves: Which organisations this server has: all, unless it is a node of a cluster.
    """

    def __init__(
        self,
        address: Address,
        *,
        name: str = "penstock",
        bound_s: float = BOUND_S,
        greet: Greet = nothing,
        restarted: Restarted = nothing,
        serves: Callable[[str], bool] = _all,
    ) -> None:
        self._address = address
        self._name = name
        self._bound_s = bound_s
        self._greet = greet
        self._restarted = restarted
        self._serves = serves
        self._wire: Wire | None = None
        self._connecting: asyncio.Task[Wire] | None = None
        self._probing: asyncio.Task[None] | None = None
        self._run_id = b""
        self.failure: str | None = None

    async def start(self) -> None:
        """Connect.

        Raises:
            StoreUnavailable: It cannot be reached, or refuses the account.
        """
        try:
            await self._connected()
        except _FAULTS as error:
            raise StoreUnavailable(self._told(error), retry_after_ms=RETRY_AFTER_MS) from error

    async def close(self) -> None:
        """End the connection. Commands under way fail."""
        for task in (self._probing, self._connecting):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        if self._wire is not None:
            self._wire.close()

    def distrust(self) -> None:
        """What another server had is here now, and its end may be lost: the next wire leads to another run."""
        self._drop()
        self._run_id = _ELSEWHERE

    async def ask(self, command: bytes, _of: str | int = 0) -> Any:
        """The reply to a packed command.

        Args:
            _of: The organisation, or its partition, that the command's keys belong to: one server has them all.

        Raises:
            StoreUnavailable: No reply in time, twice, or Redis was away already. Whether it was carried out is unknown.
            Refusal: Redis refused it.
        """
        if self.failure is not None:
            raise StoreUnavailable(self.failure, retry_after_ms=RETRY_AFTER_MS)
        fault: Exception = WireLost()
        for _ in range(ATTEMPTS):
            try:
                return await self._attempt(command)
            except Refusal as refusal:
                if refusal.code not in _USELESS:
                    raise
                self._drop()
                fault = refusal
            except _FAULTS as error:
                fault = error
        self._is_away(self._told(fault))
        raise StoreUnavailable(self._told(fault), retry_after_ms=RETRY_AFTER_MS) from fault

    async def _attempt(self, command: bytes) -> Any:
        wire = self._wire
        if wire is not None and not wire.is_lost:
            return await wire.send(command)
        async with asyncio.timeout(self._bound_s):
            return await (await self._connected()).send(command)

    async def _connected(self) -> Wire:
        """The wire that everyone shares; one connects, the others wait. A wait that is given up harms no other."""
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
            self._connecting.add_done_callback(self._has_connected)
        return await asyncio.shield(self._connecting)

    def _has_connected(self, task: asyncio.Task[Wire]) -> None:
        self._connecting = None
        if not task.cancelled():
            task.exception()  # whoever waited has it; if nobody did, the next attempt tells

    async def _connect(self) -> Wire:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_S):
            at = self._address if self._address.kind is Kind.SINGLE else await find_primary(self._address)
            _, wire = await loop.create_connection(
                lambda: Wire(bound_s=self._bound_s), at.host, at.port, ssl=at.tls,
                server_hostname=at.certified(at.host),
            )  # fmt: skip
            with _closed_unless_used(wire):
                run_id = await self._introduced(wire)
        if self._run_id and run_id != self._run_id:
            log.warning("Redis was started anew, or is another", extra={"address": str(at)})
            with _closed_unless_used(wire):
                await self._restarted(wire, self._serves)
        self._run_id = run_id
        self._drop()  # one that is there still, though a call on it was given up
        self._wire = wire
        return wire

    async def _introduced(self, wire: Wire) -> bytes:
        """Say who we are, and what greets; the id of the server's run. One round trip: time is short, and shared."""
        at = self._address
        commands = [pack("CLIENT", "SETNAME", self._name), pack("INFO", "server", "replication")]
        if at.database:
            commands.insert(0, pack("SELECT", at.database))
        if at.password is not None:
            words = (at.username, at.password) if at.username else (at.password,)
            commands.insert(0, pack("AUTH", *words))
        replies = await asyncio.gather(*map(wire.send, commands), self._greet(wire), return_exceptions=True)
        for reply in replies:  # in the order of the commands, so that the first to be refused is the one to blame
            if isinstance(reply, Refusal):
                raise WireLost(_refused(reply)) from reply
            if isinstance(reply, WireLost) and at.tls is not None and not at.shows_certificate:
                raise WireLost(f"{reply}; {_ASKS}") from reply  # what comes without one is ended, seldom with a reason
            if isinstance(reply, BaseException):
                raise reply
        told = cast(bytes, replies[-2])
        if self._address.kind is Kind.SENTINEL and b"\r\nrole:master\r\n" not in told:
            raise WireLost("the sentinels name a server that is no primary (yet, or any more)")
        return told.partition(b"run_id:")[2].partition(b"\r")[0]

    def _drop(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def _told(self, error: BaseException) -> str:
        return f"{self._address} cannot be used: {str(error) or 'no answer in time'}"

    def _is_away(self, why: str) -> None:
        self.failure = why
        if self._probing is None or self._probing.done():
            log.warning("Redis is away: %s", why)
            self._probing = asyncio.create_task(self._probe())

    async def _probe(self) -> None:
        delay_s = PROBE_FIRST_S
        while True:
            await asyncio.sleep(delay_s)
            delay_s = min(PROBE_MOST_S, 2 * delay_s)
            try:
                await self._connected()
            except _FAULTS as error:
                self.failure = self._told(error)
            else:
                self.failure = None
                log.warning("Redis is back", extra={"address": str(self._address)})
                return


@contextmanager
def _closed_unless_used(wire: Wire) -> Iterator[None]:
    """A new wire that fails, or is given up, on the way: nobody else has it."""
    try:
        yield
    except BaseException:
        wire.close()
        raise


def _refused(refusal: Refusal) -> str:
    """Why a new connection is not used, and what to do about it."""
    if refusal.code in ("WRONGPASS", "NOAUTH", "NOPERM"):
        return f"it refuses the account ({refusal}); run `penstock setup`, and check the account's password"
    if "Function not found" in str(refusal):
        return "it has no function library of Penstock; run `penstock setup`"
    return str(refusal)
