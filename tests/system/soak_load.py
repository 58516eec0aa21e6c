"""The load of the soak: whole answers, streams, clients that leave, jobs, cancellations and pages, at a steady pace.

Every answer that a client saw whole and every job that was accepted is written down: what the ledger is held against.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2 as httpx

REQUEST_S: Final = 90.0
IN_FLIGHT_MAX: Final = 150
MODELS: Final = ("m", "n")
REALTIME_FAULTS: Final = (
    "fault=no_usage", "fault=no_done", "fault=absurd_usage:huge", "fault=absurd_usage:negative", "fault=break_after:5",
    "fault=error_after:5", "fault=hang_after:5", "fault=break_before", "fault=garbage_body", "fault=garbage_stream",
    "fault=refuse:400", "fault=refuse:429", "fault=refuse:500", "fault=slow_first_byte:3000",
)  # fmt: skip
JOB_FAULTS: Final = ("fault=refuse:400", "fault=no_usage", "fault=break_before", "fault=slow_first_byte:3000")


@dataclass(slots=True)
class Accepted:
    """A job that was answered with 202, and what its owner did to it."""

    organisation: str
    wishes: str
    cancelled: bool = False


@dataclass(slots=True)
class Seen:
    """What clients saw.

    Args:
        outcomes: How often each kind of request ended in which way.
        whole: How often an answer with this (organisation, model, prompt, cached, completion) was seen to its end.
        jobs: Accepted ones by id.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    whole: Counter[tuple[str, str, int, int, int]] = field(default_factory=Counter)
    jobs: dict[str, Accepted] = field(default_factory=dict)

    def sums(self, kind: str) -> dict[str, int]:
        """Outcomes of one kind of request."""
        return {outcome: count for (each, outcome), count in sorted(self.outcomes.items()) if each == kind}


class Load:
    """Clients of several organisations.

    Args:
        keys: By organisation.
        pace: Requests begun per second, all kinds together.
    """

    def __init__(self, url: str, keys: Mapping[str, str], draw: random.Random, *, pace: float) -> None:
        self._url = url
        self._keys = dict(keys)
        self._draw = draw
        self._pace = pace
        self.seen = Seen()

    async def run(self, stop: asyncio.Event) -> None:
        """Begin requests until ``stop``; then wait for those under way."""
        bounds = httpx.Limits(max_connections=IN_FLIGHT_MAX)
        connect = httpx.AsyncClient(base_url=self._url, timeout=REQUEST_S, limits=bounds, trust_env=False)
        async with connect as client, asyncio.TaskGroup() as tasks:
            under_way: set[asyncio.Task[None]] = set()
            while not await within(stop, self._draw.expovariate(self._pace)):
                if len(under_way) < IN_FLIGHT_MAX:
                    task = tasks.create_task(self._one(client))
                    under_way.add(task)
                    task.add_done_callback(under_way.discard)

    async def _one(self, client: httpx.AsyncClient) -> None:
        kind, send = self._draw.choices(
            [("whole", self._whole), ("stream", self._stream), ("aborted", self._aborted), ("job", self._job),
             ("page", self._page)],
            weights=[30, 22, 8, 34, 6],
        )[0]  # fmt: skip
        organisation = self._draw.choice(sorted(self._keys))
        try:
            outcome = await send(client, organisation)
        except httpx.HTTPError as error:
            outcome = f"lost ({type(error).__name__})"
        except (ValueError, KeyError, TypeError):
            outcome = "garbled"
        self.seen.outcomes[kind, outcome] += 1

    def _headers(self, organisation: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self._keys[organisation]}"}

    def _body(self, wishes: str, *, tokens: int, **others: Any) -> dict[str, Any]:
        content = "x" * self._draw.randint(40, 1500)
        cached = f" cached_tokens={self._draw.randint(1, 10)}" if self._draw.random() < 0.2 else ""
        return {
            "model": self._draw.choice(MODELS),
            "messages": [{"role": "user", "content": content}],
            "max_tokens": tokens + self._draw.randint(0, 50),
            "metadata": {"simulate": f"tokens={tokens}{cached} {wishes}".strip()},
            **others,
        }

    def _wishes(self, faults: tuple[str, ...]) -> str:
        return self._draw.choice(faults) if self._draw.random() < 0.1 else ""

    async def _whole(self, client: httpx.AsyncClient, organisation: str) -> str:
        body = self._body(self._wishes(REALTIME_FAULTS), tokens=self._draw.randint(1, 60))
        answer = await client.post("/v1/chat/completions", json=body, headers=self._headers(organisation))
        if answer.status_code == 200:
            self._saw(organisation, body["model"], answer.json()["usage"])
        return str(answer.status_code)

    def _saw(self, organisation: str, model: str, usage: Mapping[str, Any]) -> None:
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        told = (organisation, model, usage["prompt_tokens"], cached, usage["completion_tokens"])
        self.seen.whole[told] += 1

    async def _stream(self, client: httpx.AsyncClient, organisation: str) -> str:
        wishes = self._wishes(REALTIME_FAULTS) or ("fault=slow_chunks:100" if self._draw.random() < 0.1 else "")
        return await self._streamed(client, organisation, wishes, events_max=0)

    async def _aborted(self, client: httpx.AsyncClient, organisation: str) -> str:
        return await self._streamed(client, organisation, "fault=slow_chunks:40", events_max=self._draw.randint(1, 20))

    async def _streamed(self, client: httpx.AsyncClient, organisation: str, wishes: str, *, events_max: int) -> str:
        """Read a stream to its end, or leave after so many events."""
        tokens = self._draw.randint(30, 150)
        body = self._body(wishes, tokens=tokens, stream=True, stream_options={"include_usage": True})
        usage, events = None, 0
        async with client.stream(
            "POST", "/v1/chat/completions", json=body, headers=self._headers(organisation)
        ) as answer:
            if answer.status_code != 200:
                return str(answer.status_code)
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    if usage is not None:
                        self._saw(organisation, body["model"], usage)
                    return "200"
                if line.startswith("data: "):
                    usage = json.loads(line[6:]).get("usage") or usage
                    events += 1
                    if events == events_max:
                        return "left"
        return "cut off"

    async def _job(self, client: httpx.AsyncClient, organisation: str) -> str:
        wishes = self._wishes(JOB_FAULTS)
        longest = 60 if self._draw.random() < 0.8 else 1000  # 5 s at the model's usual pace: time to cancel it
        body = self._body(wishes, tokens=self._draw.randint(1, longest))
        headers = self._headers(organisation) | {"prefer": "respond-async"}
        answer = await client.post("/v1/chat/completions", json=body, headers=headers)
        if answer.status_code != 202:
            return str(answer.status_code)
        job = str(answer.json()["id"])
        self.seen.jobs[job] = accepted = Accepted(organisation, wishes)
        what_next = self._draw.random()
        if what_next < 0.1:
            await within(asyncio.Event(), self._draw.random() * 2)
            accepted.cancelled = True
            await client.delete(f"/v1/jobs/{job}", headers=self._headers(organisation))
        elif what_next < 0.3:
            await client.get(f"/v1/jobs/{job}", params={"wait": "10s"}, headers=self._headers(organisation))
        return "202"

    async def _page(self, client: httpx.AsyncClient, organisation: str) -> str:
        page = self._draw.choice(("/v1/usage", "/v1/quota", "/v1/jobs", "/v1/models"))
        return str((await client.get(page, headers=self._headers(organisation))).status_code)


async def within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event at most so long; whether it came."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return event.is_set()
