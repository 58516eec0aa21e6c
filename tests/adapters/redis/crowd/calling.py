"""One process of the crowd: it reserves, touches, extends, settles, voids, repeats itself, and forgets until too late.

What it was told goes to its log before it goes on, and what it is about to ask goes there first, so that after a
SIGKILL the log says what is known and what is in doubt. A line of what was told is ``operation answer id numbers``; a
line of what is asked begins with ``?``.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from penstock.adapters.redis.translating import read_answer, write_call
from penstock.quota import (
    Acquire,
    Call,
    Duplicate,
    Extend,
    Gone,
    Lane,
    Published,
    Reserve,
    Reserved,
    Run,
    Settle,
    Settled,
    Touch,
    Unknown,
    Usage,
    Void,
    reservation_id,
)
from tests.adapters.redis.crowd.demand import LONG, MAC, ORGANISATION, SIZES, weather
from tests.adapters.redis.crowd.line import Line

REPEATED = 0.08
AT_ONCE = 6
ASLEEP_MS = (62_000, 90_000)  # longer than a lease
JOB_MS = 40_000


@dataclass(slots=True)
class Held:
    """A reservation that this process believes to be open."""

    call: Reserve
    tokens: int
    runs: bool
    asleep_until_ms: int = 0


class Caller:
    """Decides what to ask next from what it was told."""

    def __init__(self, life: int, random: Random) -> None:
        self.random = random
        self.life = life
        self.made = 0
        self.held: dict[str, Held] = {}
        self.asleep: deque[Held] = deque()
        self.asked: deque[Call[Any]] = deque(maxlen=40)

    def next(self, now_ms: int, *, ending: bool) -> Call[Any] | None:
        """The next call; None once everything has ended."""
        random = self.random
        if not ending and self.asked and random.random() < REPEATED:
            return random.choice(self.asked)
        if self.asleep and (ending or self.asleep[0].asleep_until_ms < now_ms):
            held = self.asleep.popleft()
            call: Call[Any] | None = self._settle(held, now_ms)
        elif not ending and (not self.held or (len(self.held) < SIZES[weather(now_ms)][2] and random.random() < 0.7)):
            call = self._reserve(now_ms)
        else:
            call = self._go_on(now_ms, ending=ending)
        if call is not None:
            self.asked.append(call)
        return call

    def _by(self, now_ms: int) -> dict[str, Any]:
        return {"organisation": ORGANISATION, "caller_now_ms": now_ms}

    def _reserve(self, now_ms: int) -> Reserve:
        random = self.random
        body, output, _ = SIZES[weather(now_ms)]
        self.made += 1
        lane = Lane.QUEUE if random.random() < 0.15 else Lane.REALTIME
        return Reserve(
            **self._by(now_ms), reservation=reservation_id(now_ms, self.life << 40 | self.made),
            nonce=random.choice("ab"), fingerprint="f", key=random.choice(("k1", "k1", "k2")), key_mac=MAC,
            route="chat.completions", model="m", body_bytes=random.randrange(1, body),
            outputs_bound=random.randrange(1, output), lane=lane,
            job_deadline_ms=now_ms + (JOB_MS if lane is Lane.QUEUE else 600_000),
        )  # fmt: skip

    def _go_on(self, now_ms: int, *, ending: bool) -> Call[Any] | None:
        if not self.held:
            return None
        random = self.random
        held = random.choice(list(self.held.values()))
        one = {**self._by(now_ms), "reservation": held.call.reservation}
        if held.call.lane is Lane.QUEUE and not held.runs and not ending and random.random() < 0.8:
            arguments = {name: getattr(held.call, name) for name in Reserve.__dataclass_fields__}
            return Acquire(**{**arguments, "caller_now_ms": now_ms}, epoch=1)
        (what,) = random.choices(("settle", "void", "touch", "extend", "published", "sleep"), (55, 10, 16, 12, 4, 3))
        if ending or (what == "settle" and (weather(now_ms) != LONG or random.random() < 0.4)):
            return self._settle(held, now_ms)
        if what == "void":
            return Void(**one, reason="unreachable")
        if what == "extend":
            return Extend(**one, total_tokens=held.tokens + random.randrange(200))
        if what == "published" and held.call.lane is Lane.QUEUE:
            return Published(**one)
        if what == "sleep":
            held.asleep_until_ms = now_ms + random.randrange(*ASLEEP_MS)
            self.asleep.append(self.held.pop(held.call.reservation))
        prompt = random.randrange(held.call.body_bytes + 1)
        return Touch(**one, prompt=prompt, completion=random.randrange(held.call.outputs_bound + 1))

    def _settle(self, held: Held, now_ms: int) -> Settle:
        """Within the hold, prompt and completion each: often all of it."""
        random = self.random
        prompt, completion = held.call.body_bytes, held.tokens - held.call.body_bytes
        if random.random() > 0.3:
            prompt, completion = random.randrange(prompt + 1), random.randrange(completion + 1)
        usage = Usage(prompt, completion, random.randint(0, prompt))
        return Settle(**self._by(now_ms), reservation=held.call.reservation, usage=usage)

    def hear(self, call: Any, answer: Any) -> None:
        """Learn from an answer, whether to a new call or to a repeated one."""
        held = self.held.get(call.reservation)
        match call, answer:
            case Reserve(), Reserved():
                if held is None and all(each.call.reservation != call.reservation for each in self.asleep):
                    self.held[call.reservation] = Held(call, answer.tokens_held, runs=call.lane is Lane.REALTIME)
            case Acquire(), Run() if held is not None:
                held.runs = True
            case Extend(), _ if held is not None and hasattr(answer, "tokens_held"):
                held.tokens = answer.tokens_held
            case ((Settle() | Void()), _):
                self.held.pop(call.reservation, None)
            case Acquire(), Gone() if held is not None:
                held.runs = True  # published, or expired: its settle tells
            case Touch(), Unknown():
                self.held.pop(call.reservation, None)


def told(call: Any, answer: Any) -> str:
    """A line of the log."""
    numbers = ""
    if isinstance(answer, Reserved):
        numbers = f" {answer.tokens_held}"
    elif isinstance(answer, Settled):
        usage = call.usage
        numbers = f" {answer.state.value} {usage.prompt} {usage.completion} {usage.cached} {answer.cost_nanos}"
    elif isinstance(answer, Duplicate):
        numbers = f" {answer.state.value}"
    elif hasattr(answer, "limit"):
        numbers = f" {answer.limit}"
    return f"{type(call).__name__} {type(answer).__name__} {call.reservation}{numbers}\n"


def live(port: int, log: int, life: int, seed: int, now_ms: Callable[[], int], tried: Callable[[int], bool]) -> None:
    """A process's life, until enough was tried and all its own has ended.

    Args:
        log: A file's number, to which lines are appended.
        tried: Told how many reserves were sent; answers whether that is enough.
    """
    random = Random(seed)
    caller, line = Caller(life, random), Line(port)
    ending = False
    while True:
        found = [caller.next(now_ms(), ending=ending) for _ in range(random.randint(1, AT_ONCE))]
        calls: list[Any] = [each for each in found if each is not None]
        if not calls:
            if ending:
                return
            continue
        os.write(log, f"? {' '.join(each.reservation for each in calls)}\n".encode())
        answers = [read_answer(reply) for reply in line.ask([write_call(each) for each in calls])]
        os.write(log, "".join(map(told, calls, answers)).encode())
        for call, answer in zip(calls, answers, strict=True):
            caller.hear(call, answer)
        ending = tried(sum(isinstance(each, Reserve) for each in calls))
