"""The function library in a real Redis is the model's twin, on the same calls with the same clock: 10^6 in full.

Compared are every answer, every limit's and hold's standing on the way, the outbox entry for entry, and at the end each
counter bit for bit. All calls of one history leave in a few writes; the reading of TIME is the only line that differs
from what runs in production.
"""

from __future__ import annotations

import asyncio
import struct
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, get_args

import pytest

from penstock.adapters.redis.client import pack
from penstock.adapters.redis.translating import keys_of, outbox_key, partition_of, read_answer, read_event, write_call
from penstock.adapters.redis.wire import Wire
from penstock.quota import (
    Call,
    Define,
    Definitions,
    Inspect,
    Organisation,
    Ready,
    ReservePolicy,
    Usage,
    operations,
    parse_limit_id,
)
from penstock.quota.counters import Counter, roll
from penstock.quota.definitions import Kind
from tests.adapters.redis.clocked import CLOCKED, set_time
from tests.adapters.redis.desks import pages
from tests.counts import count
from tests.quota.edges import edges
from tests.quota.histories import KEYS, LIMITS, MODELS, ORGANISATIONS, Scribe, history
from tests.system.services import Redis

HISTORIES, CALLS = 20, 1_250
PARTS = count(1_000_000, short=75_000) // (HISTORIES * CALLS)
INSPECT_EVERY = 20
AT_ONCE = 40
KINDS = (Kind.WINDOW, Kind.RATE, Kind.STRICT_RATE, Kind.CONCURRENCY, Kind.ENQUEUED)


def answers_of(call: type[Any]) -> Iterator[tuple[str, str]]:
    """Each (operation, answer) that a call's own type promises."""
    (answer,) = get_args(call.__orig_bases__[0])
    for each in get_args(answer):
        yield call.__name__, each.__name__


CALL_TYPES = [each for each in vars(operations).values() if isinstance(each, type) and issubclass(each, Call)]
PROMISED = frozenset(
    pair for each in CALL_TYPES if each not in (Call, operations.ReserveArguments) for pair in answers_of(each)
)


RARE = {("Acquire", "Never")}  # not in each twenty histories


class Twins:
    """The model and Redis, asked the same."""

    def __init__(self, wire: Wire, seed: int, written: Iterable[tuple[Call[Any], int]]) -> None:
        self.wire = wire
        self.seed = seed
        self.written = written
        self.models = {each: Organisation(each) for each in ORGANISATIONS}
        self.told_ms = -1
        self.seen: set[tuple[str, str]] = set()

    async def follow(self) -> None:
        """One history, then everything that it left behind."""
        calls = list(self.calls())
        for first in range(0, len(calls), AT_ONCE):
            await self.compare(calls[first : first + AT_ONCE])
            await self.compare_counters()
        await self.compare_events()

    def calls(self) -> Iterator[tuple[Call[Any], int]]:
        time_ms = 0
        for number, (call, time_ms) in enumerate(self.written):
            yield call, time_ms
            if number % INSPECT_EVERY == 0:
                whole = Inspect(organisation=call.organisation, caller_now_ms=time_ms)
                for each in (whole, *pages(whole, number)):
                    yield each, time_ms
        for name in ORGANISATIONS:
            yield Inspect(organisation=name, caller_now_ms=time_ms), time_ms

    async def compare(self, calls: list[tuple[Call[Any], int]]) -> None:
        replies = [self.ask(call, time_ms) for call, time_ms in calls]
        for number, ((call, time_ms), reply) in enumerate(zip(calls, replies, strict=True)):
            expected = self.models[call.organisation].apply(call, time_ms=time_ms)
            found = read_answer(await reply)
            assert found == expected, f"seed {self.seed}, call {number}: {call}"
            self.seen.add((type(call).__name__, type(found).__name__))

    def ask(self, call: Call[Any], time_ms: int) -> asyncio.Future[bytes]:
        if time_ms != self.told_ms:
            self.wire.send(set_time(time_ms))
            self.told_ms = time_ms
        return self.wire.send(write_call(call))

    async def compare_events(self) -> None:
        for name, model in self.models.items():
            entries = await self.wire.send(pack("XRANGE", outbox_key(partition_of(name)), "-", "+"))
            events = [read_event(fields[1]) for _, fields in entries]
            assert events == model.outbox, f"seed {self.seed}: events of {name}"

    async def compare_counters(self) -> None:
        for name, model in self.models.items():
            flat = await self.wire.send(pack("HGETALL", keys_of(name)[0]))
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
            assert int(fields.get(b"_clk", 0)) == model.clock_ms
            for limit, counter in model.counters.items():
                found = raw_counter(fields[limit.encode()], counter)
                for each in (found, counter):
                    roll(each, model.clock_ms)
                assert found == counter, f"seed {self.seed}"


def raw_counter(raw: bytes, like: Counter) -> Counter:
    """A counter as the library keeps it: see ``pack_counter`` there."""
    kind, _, _, period, anchor, cap, first, held, at, forgiven = struct.unpack("<BBBddddddd", raw)
    found = Counter(
        limit=like.limit, metric=like.metric, kind=KINDS[kind - 1], unit=like.unit, period_ms=int(period),
        anchor_ms=int(anchor), cap=int(cap), held=int(held), forgiven=int(forgiven),
    )  # fmt: skip
    if found.kind is Kind.WINDOW:
        found.used, found.window, found.level, found.rolled_at_ms = int(first), int(at), like.level, like.rolled_at_ms
    else:
        found.level, found.rolled_at_ms = int(first), int(at)
    return found


class Spender(Scribe):
    """Reserves by what was learned, then spends far more than was held, then waits until the debt is paid."""

    step = 0

    def _usage(self) -> Usage:
        if self.random.random() < 0.3:
            return super()._usage()
        return Usage(0, self.random.choice((1 << 31, (1 << 31) - 1, self.random.randrange(1 << 31))))

    def _known(self, organisation: str) -> str:
        known = self.reserves[organisation]
        return known.pop(0).reservation if len(known) > 1 else known[0].reservation

    def define(self, organisation: str) -> Define:
        limits = [parse_limit_id(text.format(organisation)) for text in LIMITS]
        caps = dict.fromkeys(Kind, 1 << 31) | {Kind.WINDOW: 1 << 52, Kind.STRICT_RATE: 10**9, Kind.RATE: 10**9}
        definitions = Definitions(
            limits=tuple(replace(each, cap=caps[each.kind]) for each in limits),
            keys=KEYS, models=MODELS, reserve=ReservePolicy.LEARNED,
        )  # fmt: skip
        return Define(**self._by(organisation), version=1, definitions=definitions)

    def next(self) -> tuple[Call[Any], int]:
        self.step += 1
        is_spending = self.step % 800 > 400
        self.time_ms += self.random.choice((0, 0, 1, 20)) if self.step % 800 else 10**7
        names = ("settle",) if is_spending else ("reserve",)
        call: Call[Any] = getattr(self, self.random.choice(names))(self.random.choice(self.organisations))
        return call, self.time_ms


def spending(seed: int) -> Iterator[tuple[Call[Any], int]]:
    """A history of which only the arguments are random."""
    name = ORGANISATIONS[seed % 2]
    scribe = Spender(Random(seed), (name,))
    scribe.reserves[name].append(scribe._new(name))
    yield scribe.define(name), scribe.time_ms
    yield Ready(organisation=name, caller_now_ms=scribe.time_ms, epoch=1), scribe.time_ms
    for _ in range(8 * CALLS):
        yield scribe.next()


def random_history(seed: int) -> Iterator[tuple[Call[Any], int]]:
    return history(seed, CALLS)


History = Callable[[int], Iterable[tuple[Call[Any], int]]]


async def _follow(port: int, seeds: range, written: History) -> set[tuple[str, str]]:
    loop = asyncio.get_running_loop()
    _, wire = await loop.create_connection(lambda: Wire(bound_s=60), "127.0.0.1", port)
    await wire.send(pack("FUNCTION", "LOAD", "REPLACE", CLOCKED))
    seen: set[tuple[str, str]] = set()
    for seed in seeds:
        await wire.send(pack("FLUSHALL"))
        twins = Twins(wire, seed, written(seed))
        await twins.follow()
        seen |= twins.seen
    wire.close()
    return seen


def followed(
    place: Path, seeds: range, written: History, kind: Callable[[Path], Redis] = Redis
) -> set[tuple[str, str]]:
    service = kind(place)
    service.start()
    try:
        return asyncio.run(_follow(service.port, seeds, written))
    finally:
        service.stop()


@pytest.mark.slow
@pytest.mark.torture
@pytest.mark.parametrize("part", range(PARTS))
def test_calls_are_answered_as_the_model_answers(part: int, tmp_path: Path) -> None:
    missing = PROMISED - followed(tmp_path, range(part * HISTORIES, (part + 1) * HISTORIES), random_history)
    assert missing <= (RARE if part else set())


@pytest.mark.slow
def test_debts_and_learned_estimates_are_those_of_the_model(tmp_path: Path) -> None:
    assert ("Settle", "Settled") in followed(tmp_path, range(1), spending)


@pytest.mark.slow
def test_what_lies_on_a_bound_is_answered_as_the_model_answers(tmp_path: Path) -> None:
    assert ("Extend", "Extended") in followed(tmp_path, range(1), lambda _: edges())


class Foreign(Redis):
    """A Redis under a locale that sorts `:` and `/` by other rules than their bytes, as many machines have one."""

    def environment(self) -> dict[str, str]:
        if not Path("/usr/share/i18n/locales/en_US").exists():
            pytest.skip("the sources of locales are not installed: apt-get install locales")
        made = self.folder / "en_US.UTF-8"
        subprocess.run(["localedef", "-i", "en_US", "-f", "UTF-8", made], check=True, capture_output=True)
        return {**super().environment(), "LOCPATH": str(self.folder), "LC_ALL": "en_US.UTF-8"}


@pytest.mark.slow
def test_a_locale_changes_no_order(tmp_path: Path) -> None:
    assert ("Inspect", "Inspected") in followed(tmp_path, range(1, 4), random_history, Foreign)


def test_what_must_occur_is_every_operation_and_every_answer() -> None:
    assert len({operation for operation, _ in PROMISED}) == 15
    assert len({answer for _, answer in PROMISED}) == 23
