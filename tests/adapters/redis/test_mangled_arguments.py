"""Whatever is sent to the function library, it answers, or says what is wrong and has written nothing.

A sixth of what is sent is right, and most of the rest is nearly right: see ``mangling``. What is a call by its types is
also asked of the model, which must answer the same; whatever is no call must be refused. What the library wrote is
seen by a replica, between one argument and the next.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from penstock.adapters.redis.client import pack
from penstock.adapters.redis.translating import keys_of, outbox_key, partition_of, read_answer, read_event
from penstock.quota import Call, Event, Organisation, Post, Refused
from tests.adapters.redis.clocked import CLOCKED, set_time
from tests.adapters.redis.crowd.line import Line
from tests.adapters.redis.crowd.replica import Replica
from tests.adapters.redis.mangling import Mangled, mangled
from tests.adapters.redis.typed_reading import CALLS, NoCall, read_call
from tests.counts import count
from tests.quota.histories import ORGANISATIONS, T0_MS, history
from tests.system.services import Redis

ARGUMENTS = count(1_000_000, short=5_000)
IN_ONE_HISTORY = 2_500
AT_ONCE = 100
# One argument of each kind that an earlier library answered, or broke on: its bytes as Latin-1.
ONCE_WRONG = Path(__file__).with_name("arguments_once_wrong.jsonl")

pytestmark = [pytest.mark.slow, pytest.mark.torture, pytest.mark.timeout(count(7_200, short=240))]

Sent = tuple[int, Mangled]


def restoring(random: Random, time_ms: int) -> dict[str, Any]:
    """The argument of the one function that is no call of the model."""
    sums = [
        {"limit": "acme/tokens/day", "metric": "tokens", "kind": "window", "period_ms": 86_400_000, "anchor_ms": 0,
         "window": time_ms // 86_400_000, "used": random.randrange(1_000)},
    ]  # fmt: skip
    calls = (call for call, _ in history(random.randrange(100), 300) if isinstance(call, Post))
    stones = [msgspec.to_builtins(each.already_charged) for each in islice(calls, 4) if each.already_charged]
    return {
        "organisation": "acme", "caller_now_ms": time_ms, "clock_ms": time_ms, "counters": sums, "tombstones": stones,
        "jobs": [], "rebuild": random.choice(("a", "b")), "page": random.randrange(3),
    }  # fmt: skip


def drawn(seed: int) -> Iterator[Sent]:
    """A history, of which little is left as it was; the store's clock with each."""
    random = Random(seed)
    for number, (call, time_ms) in enumerate(history(seed, IN_ONE_HISTORY)):
        function = type(call).__name__.lower()
        argument = msgspec.to_builtins(call)
        if number < 2 * len(ORGANISATIONS):  # what defines and makes ready
            yield time_ms, (function, keys_of(call.organisation), msgspec.json.encode(call))
        elif random.random() < 0.05:
            yield time_ms, mangled(random, "restore", restoring(random, time_ms))
        else:
            yield time_ms, mangled(random, function, argument)


class Judge:
    """Sends, and holds what happens against the types and the model."""

    def __init__(self, port: int, library: str = CLOCKED) -> None:
        self.line = Line(port)
        self.line.ask([pack("FUNCTION", "LOAD", "REPLACE", library)])
        self.replica = Replica(port)
        self.models: dict[str, Organisation] = {}
        self.outcomes: Tally[str] = Tally()
        self.wrong: list[str] = []
        self.is_modelled = True

    def close(self) -> None:
        self.line.close()
        self.replica.close()

    def begin(self) -> None:
        self.line.ask([pack("FLUSHALL")])
        self.models = {}
        self.is_modelled = True

    def judge(self, sent: list[Sent], name: str) -> None:
        """Send all in one write, and look at each."""
        commands = []
        for time_ms, (function, keys, text) in sent:
            fcall = pack("FCALL", f"penstock_{function}", len(keys), *keys, text)
            commands += [set_time(time_ms), fcall, pack("SET", "mark", "")]
        replies = self.line.hear(commands)[1::3]
        for (time_ms, each), reply, wrote in zip(sent, replies, self._written(len(sent)), strict=True):
            if fault := self._fault(time_ms, each, reply, wrote):
                self.wrong.append(f"{name}: {each[0]} {each[2][:2_000]!r}: {fault}")

    def _written(self, marks: int) -> list[int]:
        """How many commands were written for each argument."""
        found, here = list[int](), 0
        while len(found) < marks:
            for commands in self.replica.transactions(10.0):
                if commands[0][:2] == [b"SET", b"mark"]:
                    found.append(here)
                    here = 0
                elif commands[0][0].upper() not in (b"SELECT", b"PING", b"FLUSHALL", b"FUNCTION"):
                    here += len(commands)
        return found

    def _fault(self, time_ms: int, each: Mangled, reply: Any, wrote: int) -> str | None:
        function, keys, text = each
        expected = self._expected(time_ms, function, keys, text)
        if isinstance(reply, Exception):
            self.outcomes["refused"] += 1
            if not str(reply).startswith("PENSTOCK "):
                return f"an error of Redis or Lua: {reply}"
            if wrote:
                return f"refused with {reply}, after {wrote} writes"
            return None if expected is None or function == "restore" else f"refused with {reply}, but is a call"
        if function == "restore":
            self.is_modelled = self.is_modelled and b"Done" not in reply
            return None
        answer = read_answer(reply)
        self.outcomes[type(answer).__name__] += 1
        if expected is None:
            return f"answered with {answer}, but is no call"
        # Of definitions with two faults, either may be the reason.
        alike = answer == expected or (isinstance(answer, Refused) and isinstance(expected, Refused))
        return None if alike or not self.is_modelled else f"answered with {answer}, the model {expected}"

    def _expected(self, time_ms: int, function: str, keys: tuple[bytes, ...], text: bytes) -> Any:
        """The model's answer, or None if it is no call."""
        if function not in CALLS:
            return None
        try:
            call: Call[Any] = read_call(function, text)
        except NoCall:
            return None
        name = call.organisation
        if not keys or not keys[0].startswith(b"{q") or keys != _own_keys(keys[0], name):
            return None
        model = self.models.setdefault(name, Organisation(name))
        return model.apply(call, time_ms=time_ms)

    def compare_events(self) -> None:
        """At a history's end: the outbox is the model's."""
        for name, model in self.models.items():
            (entries,) = self.line.ask([pack("XRANGE", outbox_key(partition_of(name)), "-", "+")])
            found: list[Event] = [read_event(fields[1]) for _, fields in entries]
            if self.is_modelled and [each for each in found if each.organisation == name] != model.outbox:
                self.wrong.append(f"the events of {name} are not the model's")


def _own_keys(first: bytes, organisation: str) -> tuple[bytes, ...]:
    """Any partition's keys will do, if all are of one and of the organisation."""
    slot = first.partition(b"}")[0] + b"}:"
    own = slot + organisation.encode() + b":"
    names = (b"counters", b"reservations", b"deadlines", b"definitions")
    return (*(own + each for each in names), slot + b"outbox")


def test_no_argument_breaks_the_library(seed: int, tmp_path: Path) -> None:
    service = Redis(tmp_path, "--client-output-buffer-limit", "replica", "0", "0", "0")
    service.start()
    judge = Judge(service.port)
    try:
        for number in range(ARGUMENTS // IN_ONE_HISTORY):
            judge.begin()
            sent = list(drawn(seed + number))
            for first in range(0, len(sent), AT_ONCE):
                judge.judge(sent[first : first + AT_ONCE], f"seed {seed + number}")
            judge.compare_events()
            assert judge.wrong == [], "\n".join(judge.wrong[:8])
    finally:
        judge.close()
        service.stop()
    assert judge.outcomes["refused"] > ARGUMENTS / 4
    assert len(judge.outcomes) > 15, judge.outcomes


def test_what_once_broke_the_library_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    service = Redis(tmp_path)
    service.start()
    judge = Judge(service.port)
    lines = [msgspec.json.decode(line) for line in ONCE_WRONG.read_bytes().splitlines()]
    texts = [(line["function"], line["argument"].encode("latin-1")) for line in lines]
    try:
        judge.begin()
        judge.judge([(T0_MS, (function, keys_of("acme"), text)) for function, text in texts], ONCE_WRONG.name)
    finally:
        judge.close()
        service.stop()
    assert judge.wrong == []
    assert judge.outcomes == {"refused": len(texts)}
