"""One history of what lies exactly on a bound, where random histories seldom come: what twins of the model are driven
with beside these. A comparison that is off by one answers one of these calls otherwise, or leaves other counters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from penstock.quota import (
    Acquire,
    Call,
    Define,
    Definitions,
    Extend,
    Key,
    Lane,
    Look,
    Model,
    Ready,
    Reassert,
    Reserve,
    ReservePolicy,
    Settle,
    Sweep,
    Touch,
    Usage,
    parse_limit_id,
)
from penstock.quota.pricing import cost_nanos_max
from tests.quota.histories import MAC, MODELS, ORGANISATIONS, PRICE, T0_MS, TOKENS_MAX

NAME = ORGANISATIONS[0]
LEASE_MS = 60_000
SAMPLES_MIN = 20
LEARNED_FROM = 19  # of 20: 95 of 100
PROMPT, OUTPUTS = 10, 20
COST = cost_nanos_max(PRICE, PROMPT, OUTPUTS)
LARGE = 1 << 40


def definitions_of(
    limits: Sequence[tuple[str, int]] = (),
    keys: Sequence[Key] = (),
    policy: ReservePolicy = ReservePolicy.STRICT,
) -> Definitions:
    """Of the organisation, with a key ``k`` and three models."""
    return Definitions(
        limits=tuple(
            replace(parse_limit_id(f"{NAME}{text if text.startswith(':') else '/' + text}"), cap=cap)
            for text, cap in limits
        ),
        keys={key.id: key for key in (Key(id="k", macs=((MAC, 0),)), *keys)},
        models={**MODELS, "free": Model(name="free", context=400)},
        reserve=policy,
    )


class Edges:
    """Writes the calls; the time of each is told when it is written."""

    def __init__(self) -> None:
        self.written: list[tuple[Call[Any], int]] = []
        self.now_ms = T0_MS
        self.version = 0
        self.reservations = 0

    def ask(self, kind: type[Call[Any]], **fields: Any) -> None:
        """One call, now."""
        self.written.append((kind(organisation=NAME, caller_now_ms=self.now_ms, **fields), self.now_ms))

    def define(self, *limits: tuple[str, int], keys: Sequence[Key] = (), policy: ReservePolicy | None = None) -> None:
        """Limits by what follows the organisation's name, and cap; ``k`` is always a key."""
        self.version += 1
        self.redefine(definitions_of(limits, keys, policy or ReservePolicy.STRICT))

    def redefine(self, definitions: Definitions) -> None:
        """The version that was defined last, again."""
        self.ask(Define, version=self.version, definitions=definitions)

    def arguments(self, **others: Any) -> dict[str, Any]:
        """Of a reserve of an id that is new."""
        self.reservations += 1
        return {
            "reservation": f"e-{self.reservations:05}", "nonce": "a", "fingerprint": "f", "key": "k", "key_mac": MAC,
            "route": "chat.completions", "model": "small", "body_bytes": 100, "prompts": 1, "prompt_tokens": PROMPT,
            "outputs_bound": OUTPUTS, "lane": Lane.REALTIME, "job_deadline_ms": self.now_ms + 600_000, **others,
        }  # fmt: skip

    def reserve(self, **others: Any) -> str:
        """Ask for a hold; its id."""
        arguments = self.arguments(**others)
        self.ask(Reserve, **arguments)
        return str(arguments["reservation"])


def keys_end_to_the_millisecond(edges: Edges) -> None:
    """A key, and one of two secrets, on the last millisecond and on the next."""
    edges.define(keys=(
        Key(id="ends", macs=((MAC, 0),), expires_at_ms=edges.now_ms + 10),
        Key(id="turns", macs=((MAC, edges.now_ms + 10), ("other", 0))),
    ))  # fmt: skip
    for step_ms in (9, 1):
        edges.now_ms += step_ms
        edges.reserve(key="ends")
        edges.reserve(key="turns")


def a_key_may_spend_all_that_it_may(edges: Edges) -> None:
    """Exactly the cost that a key allows, at once and by extending; then by a key that allows less since."""
    edges.define(keys=(Key(id="poor", macs=((MAC, 0),), cost_nanos_max=COST),))
    edges.reserve(key="poor")
    small = edges.reserve(key="poor", outputs_bound=OUTPUTS - 5)
    edges.ask(Extend, reservation=small, total_tokens=PROMPT + OUTPUTS)
    edges.define(keys=(Key(id="poor", macs=((MAC, 0),), cost_nanos_max=1),))
    edges.ask(Extend, reservation=small, total_tokens=PROMPT + OUTPUTS)


def the_most_tokens_are_possible(edges: Edges) -> None:
    """2^31 tokens of progress, and of a job that was lost."""
    edges.define()
    told = edges.reserve()
    edges.ask(Touch, reservation=told, prompt=1, completion=TOKENS_MAX - 1)
    for tokens in (TOKENS_MAX, TOKENS_MAX - 1):
        arguments = edges.arguments(prompt_tokens=1, outputs_bound=tokens, lane=Lane.QUEUE)
        edges.ask(Acquire, epoch=1, **arguments)


def deadlines_pass_to_the_millisecond(edges: Edges) -> None:
    """A running job, a job that was lost and one that is told again, each at its deadline."""
    edges.define()
    job = edges.arguments(lane=Lane.QUEUE, job_deadline_ms=edges.now_ms + 30_000)
    edges.ask(Reserve, **job)
    edges.ask(Acquire, epoch=2, **job)
    edges.now_ms += 30_000
    edges.ask(Sweep, count_max=10)
    edges.ask(Look, reservation=job["reservation"])
    edges.ask(Acquire, epoch=1, **edges.arguments(lane=Lane.QUEUE, job_deadline_ms=edges.now_ms))
    late = Reserve(organisation=NAME, caller_now_ms=edges.now_ms, **edges.arguments(job_deadline_ms=edges.now_ms))
    edges.ask(Reassert, arguments=late, acquired=True, prompt=0, completion=0, renewed_at_ms=edges.now_ms)


def one_is_due_that_no_sweep_reached(edges: Edges) -> None:
    """More holds end in one millisecond than a call sweeps: the last is the one that the call is about."""
    edges.define()
    held = [edges.reserve(job_deadline_ms=edges.now_ms + 1_000) for _ in range(8)]
    edges.now_ms += 1_000
    edges.ask(Touch, reservation=held[-1], prompt=1, completion=1)


def nothing_is_asked_of_what_has_nothing(edges: Edges) -> None:
    """No tokens, of a rate in debt by less than one, of a cap of 0, and of both by a job; no cost of a budget of 0."""
    nothing: dict[str, Any] = {"prompt_tokens": 0, "outputs_bound": 0}
    edges.define(("tokens/minute", 100))
    spent = edges.reserve(prompt_tokens=50, outputs_bound=50)
    edges.ask(Settle, reservation=spent, usage=Usage(50, 51))
    edges.now_ms += 1
    edges.reserve(**nothing)
    edges.now_ms += 10**7
    edges.define(("tokens/minute", 0), ("cost/day/free", 0))
    edges.reserve(**nothing)
    edges.reserve(**nothing, lane=Lane.QUEUE)
    edges.reserve(model="free")


def a_rate_is_full_again_to_the_token(edges: Edges) -> None:
    """A refill that ends between two milliseconds does not pass the full."""
    edges.define(("tokens/second", 7_000))
    edges.reserve(prompt_tokens=5, outputs_bound=0)
    edges.now_ms += 1
    edges.reserve(prompt_tokens=6_999, outputs_bound=1)
    edges.now_ms += 1_000
    edges.reserve(prompt_tokens=7_000, outputs_bound=0)
    edges.reserve(prompt_tokens=1, outputs_bound=0)


def a_window_is_used_up_or_held(edges: Edges) -> None:
    """What would just fit, if nothing else were held, waits for a settle and not for the window's end."""
    edges.define(("tokens/day", 100))
    used = edges.reserve(prompt_tokens=40, outputs_bound=0)
    edges.ask(Settle, reservation=used, usage=Usage(40, 0))
    growing = edges.reserve(prompt_tokens=10, outputs_bound=0)
    edges.reserve(prompt_tokens=10, outputs_bound=0)
    for tokens in (60, 61):
        edges.reserve(prompt_tokens=tokens, outputs_bound=0)
        edges.ask(Extend, reservation=growing, total_tokens=tokens)


def estimates_are_learned_from_the_twentieth(edges: Edges) -> None:
    """19 settles teach nothing, the 20th does; 19 of 20 are the 95 of 100 that an estimate covers."""
    edges.define(("tokens/day", LARGE), policy=ReservePolicy.LEARNED)
    for number in range(SAMPLES_MIN):
        edges.reserve(prompt_tokens=None, outputs_bound=300)
        taught = edges.reserve(prompt_tokens=None, outputs_bound=300)
        completion = 100 if number == LEARNED_FROM else 12
        edges.ask(Settle, reservation=taught, usage=Usage(15, completion))
    edges.reserve(prompt_tokens=None, outputs_bound=300)
    edges.reserve(prompt_tokens=None, outputs_bound=5)
    edges.reserve(prompt_tokens=7, outputs_bound=300)
    edges.reserve(prompt_tokens=None, outputs_bound=300, body_bytes=TOKENS_MAX - 1)


def a_job_told_again_pays_its_rates_once(edges: Edges) -> None:
    """Told again as running, silent for a lease, and acquired again: nothing is taken of the rate."""
    edges.define(("tokens/minute", 10_000), ("tokens/enqueued", LARGE), ("concurrency/concurrent", 2))
    job = edges.arguments(lane=Lane.QUEUE)
    told = Reserve(organisation=NAME, caller_now_ms=edges.now_ms, **job)
    edges.ask(Reassert, arguments=told, acquired=True, prompt=0, completion=0, renewed_at_ms=edges.now_ms)
    edges.now_ms += LEASE_MS
    edges.ask(Sweep, count_max=10)
    edges.ask(Acquire, epoch=2, **job)
    waiting = Reserve(organisation=NAME, caller_now_ms=edges.now_ms, **edges.arguments(lane=Lane.QUEUE))
    edges.ask(Reassert, arguments=waiting, acquired=False, prompt=0, completion=0, renewed_at_ms=edges.now_ms)


def a_version_is_defined_once(edges: Edges) -> None:
    """The same again is done; anything else under the same version is refused, as is a limit told twice."""
    key = Key(id="n", macs=((MAC, 0),), routes=frozenset({"embeddings", "chat.completions", "completions"}))
    limits = (("tokens/day", 5), ("requests/day", 6))
    edges.define(*limits, keys=(key,))
    same = definitions_of(limits, (key,))
    edges.redefine(same)
    edges.redefine(
        replace(
            same,
            keys=dict(sorted(same.keys.items(), key=lambda each: each[0], reverse=True)),
            models=dict(sorted(same.models.items(), key=lambda each: each[0], reverse=True)),
        )
    )
    for other in (
        replace(key, revoked=True),
        replace(key, team="search"),
        replace(key, routes=frozenset({"embeddings"})),
        replace(key, expires_at_ms=1),
    ):
        edges.redefine(definitions_of(limits, (other,)))
    edges.redefine(definitions_of((limits[0], ("requests/day", 7)), (key,)))
    edges.version += 1
    for routes in (frozenset({"a,b", "c"}), frozenset({"a", "b,c"})):  # one text, if names were not quoted
        edges.redefine(definitions_of(keys=(replace(key, routes=routes),)))
    edges.define(limits[0], limits[0])


def thirty_two_limits_are_possible(edges: Edges) -> None:
    """On one request: of the organisation, its team and its key, for every model or for one; one more is refused."""
    keys = (Key(id="t", team="search", macs=((MAC, 0),)),)

    def each(owner: str, count: int, model: str = "") -> list[tuple[str, int]]:
        return [(f"{owner}tokens/window-{60_000 + number}-0{model}", LARGE) for number in range(count)]

    for more in (0, 1):
        edges.define(*each("", 32 + more))
        edges.define()
        edges.version += 1
        edges.redefine(replace(definitions_of(each("", 32 + more)), keys={}))
        edges.define(*each("", 31), *each("", 1 + more, "/small"), *each("", 1, "/free"))
        edges.define(*each("", 20), *each(":team:search/", 12 + more), keys=keys)
        edges.define(*each("", 20), *each(":team:other/", 12 + more), keys=keys)
        edges.define(*each("", 20), *each(":key:t/", 12 + more), *each(":key:k/", 11), keys=keys)
        edges.define(*each("", 10), *each(":team:search/", 11), *each(":key:t/", 11 + more, "/small"), keys=keys)
        edges.define(*each("", 10), *each(":team:search/", 11, "/free"), *each(":key:t/", 12, "/small"), keys=keys)


SECTIONS = (
    keys_end_to_the_millisecond, a_key_may_spend_all_that_it_may, the_most_tokens_are_possible,
    deadlines_pass_to_the_millisecond, one_is_due_that_no_sweep_reached, nothing_is_asked_of_what_has_nothing,
    a_rate_is_full_again_to_the_token, a_window_is_used_up_or_held, estimates_are_learned_from_the_twentieth,
    a_job_told_again_pays_its_rates_once, a_version_is_defined_once, thirty_two_limits_are_possible,
)  # fmt: skip


def edges() -> Iterator[tuple[Call[Any], int]]:
    """The calls of every section, each with the store's clock (Unix milliseconds) at which it arrives."""
    written = Edges()
    written.define()
    written.ask(Ready, epoch=2)
    for section in SECTIONS:
        section(written)
        written.now_ms += 10**7
    yield from written.written
