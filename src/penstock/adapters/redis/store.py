"""``penstock.ports.QuotaStore`` on Redis: each operation is one call of the function library ``penstock.lua``.

What a reply means for durability: Redis wrote the call to its append-only file before it replied, so a Redis that is
killed and started again has it, but for the last second or two of a slow disk or a loss of power. Those it is told
again: see ``replaying``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from penstock.adapters.redis.address import Address, read_address
from penstock.adapters.redis.checking import check_library, check_server
from penstock.adapters.redis.client import BOUND_S, RETRY_AFTER_MS, RedisClient
from penstock.adapters.redis.cluster import client_of, find_primaries
from penstock.adapters.redis.replaying import Acknowledged
from penstock.adapters.redis.translating import read_answer, write_call
from penstock.adapters.redis.wire import Refusal, Wire
from penstock.errors import StoreUnavailable
from penstock.quota.operations import Call, Define, Inspect, NotReady

A = TypeVar("A")

log = logging.getLogger("penstock.adapters.redis")

GOVERNING_S: Final = 5.0
AT_ONCE: Final = 200
TELL_EVERY_S: Final = 0.5
TELL_FOR_MS: Final = 120_000
_FIXES: Final = {"OOM": "lower its memory or raise maxmemory", "MISCONF": "free its disk"}
_GOVERNING = (Define, Inspect)  # read or write everything of an organisation, which takes as long as it is large


class RedisStore:
    """The quota of every organisation, shared by every process that reaches this Redis.

    Args:
        address: Where, and as whom: the users ``penstock_api``, ``penstock_keeper``... of ``penstock setup``.
        name: Shown by Redis's ``CLIENT LIST``.
        bound_s: The longest that one attempt at a call may take, in seconds; there are two.
        now_ms: The clock, Unix milliseconds.
        tells_again: Whether a Redis that lost its last seconds, or its state, is told again what it had acknowledged.
    """

    def __init__(
        self,
        address: Address,
        *,
        name: str = "penstock",
        bound_s: float = BOUND_S,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        tells_again: bool = True,
    ) -> None:
        self._address = address
        self._name = name
        self.bound_s = bound_s
        self._now_ms = now_ms
        self._acknowledged = Acknowledged()
        self._tells_again = tells_again
        self._losses: dict[str, asyncio.Task[None]] = {}
        self._lost_again: set[str] = set()
        self._calls = client_of(address, name=name, bound_s=bound_s, greet=check_library, restarted=self._tell_again)
        self._governing = client_of(address, name=f"{name}-governing", bound_s=GOVERNING_S, greet=check_library)

    @property
    def failure(self) -> str | None:
        """Why Redis cannot be used just now; None while it can."""
        return self._calls.failure

    async def start(self) -> None:
        """Connect, and see that this Redis can be trusted with a quota.

        Raises:
            ConfigurationError: It may evict or lose what it is told, is too old, or lacks the library: all, with fixes.
            StoreUnavailable: It cannot be reached, or refuses the account.
        """
        for primary in await find_primaries(self._address):
            asking = RedisClient(primary, name=self._name)
            try:
                await asking.start()
                await check_server(asking)
            except Refusal as refusal:
                raise StoreUnavailable(
                    f"{primary} refuses what a start must ask: {refusal}; run `penstock setup`"
                ) from refusal
            finally:
                await asking.close()
        for client in (self._calls, self._governing):
            await client.start()

    async def apply(self, call: Call[A]) -> A:
        """See ``penstock.ports.QuotaStore.apply``.

        A call whose reply is lost is sent once more as it was. So an answer may be the one to a repetition: a settle's
        is then ``Duplicate``, a reserve's is the same ``Reserved``, by its nonce.

        Raises:
            StoreUnavailable: No answer in time, twice; or Redis was away already, and nothing was sent.
            ValueError: The call is none that the library takes: our own mistake.
        """
        client = self._governing if isinstance(call, _GOVERNING) else self._calls
        try:
            reply = await client.ask(write_call(call), call.organisation)
        except Refusal as refusal:
            raise _translated(refusal, call) from refusal
        answer = read_answer(reply)
        if self._tells_again:
            self._acknowledged.note(call, answer)
            if type(answer) is NotReady:
                self._notice_loss(call.organisation)
        return cast(A, answer)

    async def close(self) -> None:
        """End the connections. Calls under way fail."""
        for task in tuple(self._losses.values()):
            task.cancel()
            await asyncio.wait([task])
        await self._calls.close()
        await self._governing.close()

    async def _tell_again(self, wire: Wire, serves: Callable[[str], bool]) -> None:
        """Restore what a Redis that was started anew may have lost, before anything else is asked of it."""
        calls = [call for call in self._acknowledged.again(self._now_ms()) if serves(call.organisation)]
        answers: Counter[str] = Counter()
        for first in range(0, len(calls), AT_ONCE):
            asked = [wire.send(write_call(call)) for call in calls[first : first + AT_ONCE]]
            for call, reply in zip(calls[first:], asked, strict=False):
                name = await _answer_name(reply)
                answers[f"{type(call).__name__}: {name}"] += 1
                if name == NotReady.__name__:
                    self._notice_loss(call.organisation)
        _log_told(answers)

    def _notice_loss(self, organisation: str) -> None:
        """An organisation's state is gone: keep what it had acknowledged here, and tell it once it is put back."""
        if organisation in self._losses:
            self._lost_again.add(organisation)
            return
        calls = self._acknowledged_of(organisation)
        if calls:
            task = asyncio.create_task(self._tell_when_back(organisation, calls))
            self._losses[organisation] = task
            task.add_done_callback(lambda _: self._losses.pop(organisation))

    def _acknowledged_of(self, organisation: str) -> list[Call[Any]]:
        return [call for call in self._acknowledged.again(self._now_ms()) if call.organisation == organisation]

    async def _tell_when_back(self, organisation: str, calls: list[Call[Any]]) -> None:
        """A rebuild waits one lease for what processes still hold; after two, every lease has passed.

        Lost again on the way, all is told from the start, with what was acknowledged since.
        """
        until_ms = self._now_ms() + TELL_FOR_MS
        answers: Counter[str] = Counter()
        place = 0
        while place < len(calls) and self._now_ms() < until_ms:
            answer: object = None
            with suppress(StoreUnavailable):
                answer = await self.apply(replace(calls[place], caller_now_ms=self._now_ms()))
            if answer is None or isinstance(answer, NotReady):
                place = 0
                await asyncio.sleep(TELL_EVERY_S)
                continue
            answers[f"{type(calls[place]).__name__}: {type(answer).__name__}"] += 1
            place += 1
            if place == len(calls) and organisation in self._lost_again:
                self._lost_again.discard(organisation)
                calls, place = [*calls, *self._acknowledged_of(organisation)], 0
        _log_told(answers)


def _log_told(answers: Counter[str]) -> None:
    if answers:
        log.warning("Redis was told again what it had acknowledged", extra={"answers": dict(answers)})


async def _answer_name(reply: asyncio.Future[bytes]) -> str:
    try:
        return type(read_answer(await reply)).__name__
    except Refusal as refusal:
        return refusal.code


def _translated(refusal: Refusal, call: Call[Any]) -> Exception:
    if refusal.code == "PENSTOCK":
        return ValueError(str(refusal))
    log.error("Redis refused a call", extra={"operation": type(call).__name__, "why": str(refusal)})
    fix = _FIXES.get(refusal.code, "run `penstock setup`")
    return StoreUnavailable(f"Redis refused a call: {refusal}; {fix}", retry_after_ms=RETRY_AFTER_MS)


@asynccontextmanager
async def open_store(
    url: str,
    *,
    username: str | None = None,
    password: str | None = None,
    ca: Path | None = None,
    name: str = "penstock",
    bound_s: float = BOUND_S,
    tells_again: bool = True,
) -> AsyncIterator[RedisStore]:
    """The store at a URL, checked and connected; closed at the end.

    Args:
        url: See ``read_address``.
        username: Of an account that ``penstock setup`` made; goes before the URL's, as ``password`` does.
        ca: Certificates (PEM) that vouch for the server instead of the system's.
        bound_s: See ``RedisStore``, as for ``tells_again``.

    Raises:
        ConfigurationError, StoreUnavailable: See ``RedisStore.start``.
    """
    address = read_address(url, username=username, password=password, ca=ca)
    store = RedisStore(address, name=name, bound_s=bound_s, tells_again=tells_again)
    try:
        await store.start()
        yield store
    finally:
        await store.close()
