"""One organisation to try things on: a clock that stands still, and calls with everything but the point filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from penstock.quota import (
    Acquire,
    Call,
    Cancel,
    Define,
    Definitions,
    Done,
    Event,
    Extend,
    Hold,
    Inspect,
    Inspected,
    Key,
    Lane,
    LimitStanding,
    Look,
    Model,
    Organisation,
    Post,
    Price,
    Published,
    Ready,
    Reassert,
    Reserve,
    Settle,
    Sweep,
    Touch,
    Usage,
    Void,
    parse_limit_id,
)

A = TypeVar("A")

T0 = 1_700_000_000_000  # 2023-11-14, a Tuesday, 22:13:20
LEASE_MS = 60_000
REMEMBER_MS = 900_000
PRICE = Price(prompt_picos=2_000_000, cached_picos=1_000_000, completion_picos=4_000_000, request_picos=5_000_000)
MAC = "5ec2e7"


def definitions(caps: Mapping[str, int], **fields: Any) -> Definitions:
    """Limits by id, key k1 of team search, key k2 of none, and models m and other."""
    defaults: dict[str, Any] = {
        "limits": tuple(replace(parse_limit_id(text), cap=cap) for text, cap in caps.items()),
        "keys": {"k1": Key(id="k1", team="search", macs=((MAC, 0),)), "k2": Key(id="k2", macs=((MAC, 0),))},
        "models": {
            "m": Model(name="m", context=8_192, template_tokens=10, price=PRICE),
            "other": Model(name="other", context=100),
        },
    }
    return Definitions(**{**defaults, **fields})


class Desk:
    """An organisation ``acme``, ready unless told otherwise."""

    def __init__(self, caps: Mapping[str, int] | None = None, *, epoch: int | None = 1, **fields: Any) -> None:
        self.now_ms = T0
        self.organisation = Organisation("acme")
        self.version = 0
        self.define(caps or {}, **fields)
        if epoch is not None:
            self.ready(epoch)

    def apply(self, call: Call[A]) -> A:
        return self.organisation.apply(call, time_ms=self.now_ms)

    def _make(self, kind: type[Any], **fields: Any) -> Any:
        return self.apply(kind(**{"organisation": "acme", "caller_now_ms": self.now_ms, **fields}))

    def later(self, ms: int) -> Desk:
        """Let time pass."""
        self.now_ms += ms
        return self

    def define(self, caps: Mapping[str, int], **fields: Any) -> Any:
        self.version += 1
        answer = self._make(Define, version=self.version, definitions=definitions(caps, **fields))
        assert answer == Done(), answer
        return answer

    def ready(self, epoch: int, *, restored: str | None = None) -> Any:
        return self._make(Ready, epoch=epoch, restored=restored)

    def arguments(self, reservation: str = "r1", **fields: Any) -> dict[str, Any]:
        """By default 60 prompt tokens, known exactly, and at most 40 of completion."""
        return {
            "organisation": "acme",
            "caller_now_ms": self.now_ms,
            "reservation": reservation,
            "nonce": "n1",
            "fingerprint": "f1",
            "key": "k1",
            "key_mac": MAC,
            "route": "chat.completions",
            "model": "m",
            "body_bytes": 500,
            "prompt_tokens": 60,
            "outputs_bound": 40,
            "lane": Lane.REALTIME,
            "job_deadline_ms": T0 + 600_000,
            **fields,
        }

    def reserve(self, reservation: str = "r1", **fields: Any) -> Any:
        return self.apply(Reserve(**self.arguments(reservation, **fields)))

    def enqueue(self, reservation: str = "j1", **fields: Any) -> Any:
        return self.reserve(reservation, lane=Lane.QUEUE, **fields)

    def acquire(self, reservation: str = "j1", *, epoch: int = 1, **fields: Any) -> Any:
        return self.apply(Acquire(epoch=epoch, **self.arguments(reservation, **{"lane": Lane.QUEUE, **fields})))

    def settle(self, reservation: str = "r1", prompt: int = 60, completion: int = 40, cached: int = 0) -> Any:
        return self._make(Settle, reservation=reservation, usage=Usage(prompt, completion, cached))

    def void(self, reservation: str = "r1", reason: str = "") -> Any:
        return self._make(Void, reservation=reservation, reason=reason)

    def touch(self, reservation: str = "r1", prompt: int = 0, completion: int = 0) -> Any:
        return self._make(Touch, reservation=reservation, prompt=prompt, completion=completion)

    def extend(self, reservation: str = "r1", total_tokens: int = 0) -> Any:
        return self._make(Extend, reservation=reservation, total_tokens=total_tokens)

    def published(self, reservation: str = "j1") -> Any:
        return self._make(Published, reservation=reservation)

    def cancel(self, reservation: str = "r1") -> Any:
        return self._make(Cancel, reservation=reservation)

    def sweep(self, count_max: int = 1_000) -> Any:
        return self._make(Sweep, count_max=count_max)

    def reassert(self, reservation: str = "r1", **fields: Any) -> Any:
        own = {"acquired": True, "prompt": 0, "completion": 0, "renewed_at_ms": self.now_ms}
        own.update({name: fields.pop(name) for name in tuple(fields) if name in own})
        return self._make(Reassert, arguments=Reserve(**self.arguments(reservation, **fields)), **own)

    def post(
        self, reservation: str = "r1", usage: Usage | None = None, before: Event | None = None, **fields: Any
    ) -> Any:
        arguments = Reserve(**self.arguments(reservation, **fields))
        return self._make(Post, arguments=arguments, usage=usage or Usage(60, 40), already_charged=before)

    def look(self, reservation: str = "r1") -> Any:
        return self._make(Look, reservation=reservation)

    def inspect(self) -> Inspected:
        answer = self._make(Inspect)
        assert isinstance(answer, Inspected)
        return answer

    def page(self, count: int, *, after: Hold | None = None) -> tuple[Hold, ...]:
        """Open holds behind ``after``."""
        behind = {} if after is None else {"after_ms": after.deadline_ms, "after": after.reservation}
        answer = self._make(Inspect, holds_max=count, **behind)
        assert isinstance(answer, Inspected)
        return answer.holds

    def standing(self, limit: str) -> LimitStanding:
        return {each.limit: each for each in self.inspect().limits}[limit]

    def used(self, limit: str) -> int:
        return self.standing(limit).used

    def held(self, limit: str) -> int:
        return self.standing(limit).held

    def available(self, limit: str) -> int:
        return self.standing(limit).available

    def level(self, limit: str) -> int:
        """A bucket's level as it was last rolled, in tokens x ms."""
        return self.organisation.counters[limit].level

    def take_events(self) -> list[Event]:
        """What happened since the last time this was asked."""
        events = list(self.organisation.outbox)
        self.organisation.outbox.clear()
        return events
