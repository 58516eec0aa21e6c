"""``penstock.ports.QuotaStore`` on Redis: each operation is one call of the function library ``penstock.lua``.

What a reply means for durability: Redis wrote the call to its append-only file before it replied, so a Redis that is
killed and started again has it, but for the last second or two of a slow disk or a loss of power. Those it is told
again: see ``replaying``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar, cast

from penstock.adapters.redis.address import Address, read_address
from penstock.adapters.redis.checking import check_library, check_server
from penstock.adapters.redis.client import BOUND_S, RETRY_AFTER_MS, RedisClient
from penstock.adapters.redis.cluster import client_of, find_primaries
from penstock.adapters.redis.positions import find_positions
from penstock.adapters.redis.retelling import Retelling
from penstock.adapters.redis.translating import read_answer, write_call
from penstock.adapters.redis.wire import Refusal, Wire
from penstock.adapters.tls import Tls
from penstock.errors import StoreUnavailable
from penstock.quota.operations import Call, Define, Inspect

A = TypeVar("A")

log = logging.getLogger("penstock.adapters.redis")

GOVERNING_S: Final = 5.0
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
        self._retelling = Retelling(self.apply, now_ms, lambda names: find_positions(self._calls, names))
        self._tells_again = tells_again
        self._calls = client_of(address, name=name, bound_s=bound_s, greet=check_library, restarted=self._tell_again)
        self._governing = client_of(address, name=f"{name}-governing", bound_s=GOVERNING_S, greet=check_library)

    @property
    def failure(self) -> str | None:
        """Why Redis cannot be used just now; None while it can."""
        return self._calls.failure

    @property
    def remembered(self) -> int:
        """How many calls are kept, to be told to a Redis that loses them before the ledger has them."""
        return self._retelling.remembered

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
            self._retelling.note(call, answer)
        return cast(A, answer)

    async def close(self) -> None:
        """End the connections. Calls under way fail."""
        await self._retelling.close()
        await self._calls.close()
        await self._governing.close()

    async def _tell_again(self, wire: Wire, serves: Callable[[str], bool]) -> None:
        await self._retelling.tell(lambda call: _answered(wire.send(write_call(call))), serves)


async def _answered(reply: asyncio.Future[bytes]) -> object:
    try:
        return read_answer(await reply)
    except Refusal as refusal:
        return refusal


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
    tls: Tls | None = None,
    name: str = "penstock",
    bound_s: float = BOUND_S,
    tells_again: bool = True,
) -> AsyncIterator[RedisStore]:
    """The store at a URL, checked and connected; closed at the end.

    Args:
        url: See ``read_address``.
        username: Of an account that ``penstock setup`` made; goes before the URL's, as ``password`` does.
        tls: See ``read_address``.
        bound_s: See ``RedisStore``, as for ``tells_again``.

    Raises:
        ConfigurationError, StoreUnavailable: See ``RedisStore.start``.
    """
    address = read_address(url, username=username, password=password, tls=tls)
    store = RedisStore(address, name=name, bound_s=bound_s, tells_again=tells_again)
    try:
        await store.start()
        yield store
    finally:
        await store.close()
