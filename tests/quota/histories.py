"""Random histories of operations, the same for the same seed: what every twin of the model is driven with.

They cover every operation and every way to be refused: clocks step back and forward, caps change and lie at their
bounds, calls are repeated, delayed and reordered, ids are reused, and two organisations take turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

from penstock.quota import (
    Acquire,
    Call,
    Cancel,
    Charge,
    Define,
    Definitions,
    Event,
    EventKind,
    Extend,
    Inspect,
    Key,
    Kind,
    Lane,
    Look,
    Model,
    Overrun,
    Post,
    Price,
    Published,
    Ready,
    Reassert,
    Reserve,
    ReservePolicy,
    Settle,
    Sweep,
    Touch,
    Usage,
    UsageSource,
    Void,
    parse_limit_id,
)

T0_MS = 1_700_000_000_000
ORGANISATIONS = ("acme", "zeta")
MAC = "ab12"
TOKENS_MAX = 1 << 31
LIMITS = (
    "{}/tokens/minute", "{}/tokens/second", "{}/requests/minute", "{}/tokens/strict_rate-60000", "{}/tokens/hour",
    "{}/tokens/month", "{}/requests/day", "{}/cost/week", "{}/cost/day/org/large", "{}/concurrency/concurrent",
    "{}/tokens/rate-5000/small", "{}:team:search/tokens/day", "{}:team:search/concurrency/concurrent",
    "{}:key:k1/tokens/day", "{}:key:k1/requests/second", "{}:key:k2/tokens/window-7200000-60000",
    "{}/tokens/enqueued", "{}:team:search/requests/enqueued/small",
)  # fmt: skip
CAPS = (0, 1, 300, 1_000, 3_000, 20_000, 10**5, *[10**6, 10**8, 10**9] * 5, 1 << 52)
PRICE = Price(prompt_picos=150_000, cached_picos=75_000, completion_picos=600_000, request_picos=1_001)
MODELS = {
    "small": Model(name="small", context=400, template_tokens=3, price=PRICE),
    "org/large": Model(name="org/large", context=8_192, tokens_per_byte_max=2, price=Price(cached_picos=7)),
}
KEYS = {
    "k1": Key(id="k1", team="search", macs=((MAC, 0),)),
    "k2": Key(id="k2", macs=(("old", T0_MS + 10_000), (MAC, 0))),
    "jwt": Key(id="jwt", team="search", verified=True),
    "gone": Key(id="gone", macs=((MAC, 0),), revoked=True),
    "few": Key(id="few", macs=((MAC, 0),), models=frozenset({"small"}), routes=frozenset({"chat.completions"}),
               cost_nanos_max=100_000),
}  # fmt: skip


class Scribe:
    """Writes one call after the other; remembers what it wrote, never what was answered."""

    def __init__(self, random: Random, organisations: tuple[str, ...] = ORGANISATIONS) -> None:
        self.random = random
        self.organisations = organisations
        self.time_ms = T0_MS
        self.versions = dict.fromkeys(organisations, 0)
        self.epochs = dict.fromkeys(organisations, 0)
        self.reserves: dict[str, list[Reserve]] = {each: [] for each in organisations}
        self.written: list[Call[Any]] = []

    def pass_time(self) -> None:
        """Usually a little, sometimes a lease or a month, sometimes back."""
        choice, below = self.random.random(), self.random.randrange
        if choice < 0.4:
            return
        if choice < 0.9:
            self.time_ms += below(1, 3_000)
        elif choice < 0.95:
            self.time_ms += below(10_000, 70_000)
        elif choice < 0.98:
            self.time_ms -= below(1, 100_000)
        elif choice < 0.995:
            self.time_ms += below(600_000, 5_000_000)
        else:
            self.time_ms += below(40_000_000, 3_000_000_000)

    def next(self) -> tuple[Call[Any], int]:
        """One more call, and the store's clock for it."""
        self.pass_time()
        if self.written and self.random.random() < 0.12:
            call = self.random.choice(self.written[-40:])  # repeated or delayed, as it was
        else:
            (operation,) = self.random.choices(OPERATIONS, WEIGHTS)
            call = operation(self, self.random.choice(self.organisations))
            self.written.append(call)
        return call, self.time_ms

    def _by(self, organisation: str) -> dict[str, Any]:
        skew_ms = 0
        if self.random.random() < 0.08:
            skew_ms = self.random.choice((-45_000, -30_001, -30_000, -7, 900, 30_000, 30_001, 10**7))
        return {"organisation": organisation, "caller_now_ms": self.time_ms + skew_ms}

    def _known(self, organisation: str) -> str:
        known = self.reserves[organisation]
        if not known or self.random.random() < 0.03:
            return f"absent-{self.random.randrange(20)}"
        return self.random.choice(known[-6:]).reservation

    def _arguments(self, organisation: str) -> dict[str, Any]:
        pick, below = self.random.choice, self.random.randrange
        unusual = self.random.random() < 0.1
        key = pick(
            ("k1", "k1", "k1", "k2", "k2", "jwt", "few", "gone", "k1~s") if unusual else ("k1", "k1", "k2", "jwt~s1")
        )
        return {
            **self._by(organisation),
            "reservation": f"{organisation}-{len(self.reserves[organisation]):05}",  # anew if it was not believable
            "nonce": pick("ab"),
            "fingerprint": "f",
            "key": key,
            "key_mac": "" if key.startswith("jwt") else pick((MAC, MAC, MAC, "old", "", "bad") if unusual else (MAC,)),
            "route": pick(("chat.completions", "embeddings")),
            "model": pick(("small", "org/large", "none") if unusual else ("small", "org/large")),
            "body_bytes": pick((0, 1, below(1_000), TOKENS_MAX - 1, -1) if unusual else (below(1_000),)),
            "prompts": pick((0, 1, 2, TOKENS_MAX) if unusual else (1,)),
            "prompt_tokens": pick((None, below(200), TOKENS_MAX, -5) if unusual else (None, below(200))),
            "outputs_bound": pick((0, below(400), TOKENS_MAX, -1) if unusual else (below(300),)),
            "lane": pick((Lane.REALTIME, Lane.REALTIME, Lane.QUEUE)),
            "job_deadline_ms": self.time_ms + pick((-1, 0, 1, 10**10) if unusual else (20_000, 300_000, 2_000_000)),
        }

    def reserve(self, organisation: str) -> Call[Any]:
        """Mostly of a new id; else another attempt, another body or the same again of an old one."""
        known = self.reserves[organisation]
        if known and self.random.random() < 0.15:
            old = self.random.choice(known[-6:])
            nonce, fingerprint = self.random.choice("ab"), self.random.choice("fffg")
            return replace(old, nonce=nonce, fingerprint=fingerprint, **self._by(organisation))
        return self._new(organisation)

    def _new(self, organisation: str) -> Reserve:
        call = Reserve(**self._arguments(organisation))
        is_believable = call.key_mac in ("", MAC) and call.model in MODELS and 0 <= call.outputs_bound < TOKENS_MAX
        if is_believable or self.random.random() < 0.1:
            self.reserves[organisation].append(call)
        return call

    def settle(self, organisation: str) -> Call[Any]:
        """Of mostly believable usage."""
        return Settle(**self._by(organisation), reservation=self._known(organisation), usage=self._usage())

    def _usage(self) -> Usage:
        prompt, completion = self.random.randrange(300), self.random.randrange(300)
        if self.random.random() < 0.05:
            return self.random.choice(
                (
                    Usage(-1, 0),
                    Usage(0, -1),
                    Usage(1, 1, 2),
                    Usage(1, 1, -1),
                    Usage(0, TOKENS_MAX),
                    Usage(1, TOKENS_MAX),
                )
            )
        return Usage(prompt, completion, self.random.randint(0, prompt), self.random.choice(tuple(UsageSource)))

    def void(self, organisation: str) -> Call[Any]:
        """Sometimes of an id whose reserve is yet to come."""
        coming = f"{organisation}-{len(self.reserves[organisation]) + self.random.randrange(3):05}"
        reservation = coming if self.random.random() < 0.2 else self._known(organisation)
        return Void(**self._by(organisation), reservation=reservation, reason=self.random.choice(("", "unreachable")))

    def touch(self, organisation: str) -> Call[Any]:
        """Progress that mostly grows."""
        prompt, completion = self.random.choice(
            ((0, 5), (9, 40), (120, 200), (30, 2), (0, 0), (0, 0), (-1, 0), (1, TOKENS_MAX))
        )
        return Touch(
            **self._by(organisation), reservation=self._known(organisation), prompt=prompt, completion=completion
        )

    def extend(self, organisation: str) -> Call[Any]:
        """To more, less and too much."""
        total_tokens = self.random.choice((0, 50, 300, 500, 700, 2_000, 9_000, 10**7, TOKENS_MAX, TOKENS_MAX + 1, -1))
        return Extend(**self._by(organisation), reservation=self._known(organisation), total_tokens=total_tokens)

    def acquire(self, organisation: str) -> Call[Any]:
        """Of a job that was reserved, of one that was lost, or of what is no job."""
        known = self.reserves[organisation]
        jobs = [each for each in known[-30:] if each.lane is Lane.QUEUE]
        if jobs and self.random.random() < 0.9:
            old = self.random.choice(jobs)
            fields = {name: getattr(old, name) for name in Reserve.__dataclass_fields__} | self._by(organisation)
        else:
            fields = {name: getattr(self._new(organisation), name) for name in Reserve.__dataclass_fields__}
        epoch = max(0, self.epochs[organisation] + self.random.choice((0, 0, 0, 0, -1, -1, 1)))
        return Acquire(epoch=epoch, **fields)

    def published(self, organisation: str) -> Call[Any]:
        """Of any id."""
        return Published(**self._by(organisation), reservation=self._known(organisation))

    def cancel(self, organisation: str) -> Call[Any]:
        """Of any id."""
        return Cancel(**self._by(organisation), reservation=self._known(organisation))

    def sweep(self, organisation: str) -> Call[Any]:
        """Of some or all."""
        return Sweep(**self._by(organisation), count_max=self.random.choice((-1, 0, 1, 5, 1_000)))

    def define(self, organisation: str) -> Call[Any]:
        """Other limits and caps, sometimes an old version, sometimes unfit."""
        is_first = not self.versions[organisation]
        version = self.versions[organisation] = self.versions[organisation] + self.random.choice(
            (1, 1, 1, 1, 3, is_first)
        )
        if not is_first and self.random.random() < 0.1:
            version -= 2
        texts = self.random.sample(LIMITS, self.random.randint(3, 8))
        limits = []
        for text in texts:
            limit = parse_limit_id(text.format(organisation))
            cap_max = (1 << 52) // limit.period_ms if limit.kind in (Kind.RATE, Kind.STRICT_RATE) else 1 << 52
            limits.append(replace(limit, cap=min(self.random.choice(CAPS), cap_max)))
        if not is_first and self.random.random() < 0.05:
            limits.append(replace(limits[0], cap=-1))
        definitions = Definitions(
            limits=tuple(limits), keys=KEYS, models=MODELS,
            reserve=self.random.choice(tuple(ReservePolicy)), overrun=self.random.choice(tuple(Overrun)),
            shard=self.random.choice((0, 5, 1_023)),
        )  # fmt: skip
        return Define(**self._by(organisation), version=version, definitions=definitions)

    def ready(self, organisation: str) -> Call[Any]:
        """The marker, the same epoch, an older one or the next."""
        epoch = self.epochs[organisation] + self.random.choice((-1, 0, 1, 1))
        self.epochs[organisation] = max(self.epochs[organisation], epoch)
        restored = (None, None, "", None, None, None, "1 of another")[self.time_ms % 7]  # nothing more is drawn for it
        return Ready(**self._by(organisation), epoch=epoch, restored=restored)

    def _lost(self, organisation: str) -> Reserve:
        """A reserve that the store does not know, or one that it does."""
        known = self.reserves[organisation]
        if known and self.random.random() < 0.5:
            return self.random.choice(known[-6:])
        return self._new(organisation)

    def reassert(self, organisation: str) -> Call[Any]:
        """Of what was lost, in time or too late."""
        prompt, completion = self.random.choice(((0, 0), (10, 20), (-1, 0), (1, TOKENS_MAX)))
        renewed_at_ms = self.time_ms - self.random.choice((0, 1_000, 59_999, 60_000, 10**6))
        return Reassert(
            **self._by(organisation), arguments=self._lost(organisation), acquired=self.random.random() < 0.6,
            prompt=prompt, completion=completion, renewed_at_ms=renewed_at_ms,
        )  # fmt: skip

    def post(self, organisation: str) -> Call[Any]:
        """Of what was forgotten, charged before or not."""
        lost = self._lost(organisation)
        before = None
        if self.random.random() < 0.5:
            charge = self.random.choice((Charge(), Charge(0, 1, 2), Charge(100, 1, 9_000)))
            before = Event(
                kind=EventKind.EXPIRED, reservation=lost.reservation, organisation=organisation, team=None,
                key=lost.key, model=lost.model, lane=lost.lane.value, occurred_at_ms=self.time_ms,
                usage=Usage(charge.tokens, 0, 0, UsageSource.LOCAL), charge=charge, amounts=(), price=PRICE,
                tokens_held=300, job_deadline_ms=lost.job_deadline_ms,
            )  # fmt: skip
        return Post(**self._by(organisation), arguments=lost, usage=self._usage(), already_charged=before)

    def inspect(self, organisation: str) -> Call[Any]:
        """Read everything, and change nothing."""
        return Inspect(**self._by(organisation))

    def look(self, organisation: str) -> Call[Any]:
        """Of any id."""
        return Look(**self._by(organisation), reservation=self._known(organisation))


OPERATIONS = (
    Scribe.reserve, Scribe.settle, Scribe.void, Scribe.touch, Scribe.extend, Scribe.acquire, Scribe.published,
    Scribe.cancel, Scribe.sweep, Scribe.define, Scribe.ready, Scribe.reassert, Scribe.post, Scribe.inspect,
    Scribe.look,
)  # fmt: skip
WEIGHTS = (36, 16, 5, 8, 4, 12, 3, 4, 2, 3, 2, 3, 3, 3, 3)


def history(seed: int, length: int, organisations: tuple[str, ...] = ORGANISATIONS) -> Iterator[tuple[Call[Any], int]]:
    """``length`` calls, each with the store's clock (Unix milliseconds) at which it arrives.

    The first calls of all histories define every organisation and, of most, make it ready.
    """
    scribe = Scribe(Random(seed), organisations)
    opening: list[Call[Any]] = [Scribe.define(scribe, each) for each in organisations]
    if seed % 8:
        scribe.epochs = dict.fromkeys(organisations, 2)
        opening += [Ready(organisation=each, caller_now_ms=scribe.time_ms, epoch=2) for each in organisations]
    for call in opening[:length]:
        yield call, scribe.time_ms
    for _ in range(length - len(opening)):
        yield scribe.next()
