"""Decides who sends what: organisations by a skewed share, streams by a share; the same for the same seed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from penstock.planning.rehearsing.sending import Planned
from penstock.planning.rehearsing.traces import Arrival

CHAT = "/v1/chat/completions"


def zipf_weights(count: int) -> list[int]:
    """Integer weights of ``count`` organisations: the second has half of the first's, the third a third, and so on.

    Example:
        >>> zipf_weights(4)
        [1000000, 500000, 333333, 250000]

    Source:
        Zipf's law with exponent 1, the usual shape of tenants' shares.
    """
    return [1_000_000 // rank for rank in range(1, count + 1)]


@dataclass(frozen=True, slots=True)
class Draw:
    """Who sends one request, and how."""

    organisation: str
    model: str
    stream: bool


def draw(
    count: int, *, organisations: Sequence[str], models: Sequence[str], stream_percent: int, seed: int
) -> list[Draw]:
    """Draw for each of ``count`` requests; the first organisation and the first model get the largest share."""
    source = random.Random(seed)
    shares = list(itertools.accumulate(zipf_weights(len(organisations))))
    model_shares = list(itertools.accumulate(zipf_weights(len(models))))
    return [
        Draw(
            organisation=source.choices(organisations, cum_weights=shares)[0],
            model=source.choices(models, cum_weights=model_shares)[0],
            stream=source.randrange(100) < stream_percent,
        )
        for _ in range(count)
    ]


def plan_trace(
    arrivals: Sequence[Arrival], draws: Sequence[Draw], *, write_prompt: Callable[[int], str], tokens_per_message: int
) -> list[Planned]:
    """Turn each arrival into a chat of its length; a simulated model is told how long the answer was.

    Args:
        write_prompt: Writes a text of so many tokens.
        tokens_per_message: What a message counts beside its text.
    """
    planned = []
    for arrival, drawn in zip(arrivals, draws, strict=True):
        body: dict[str, object] = {
            "messages": _asking(write_prompt(max(1, arrival.prompt - tokens_per_message))),
            "metadata": {"simulate": f"tokens={arrival.completion}"},
        }
        planned.append(_planned(arrival.at_ms, drawn, body))
    return planned


def plan_questions(questions: Sequence[str], draws: Sequence[Draw], *, max_tokens: int) -> list[Planned]:
    """Turn each question into a chat, to be sent at once."""
    return [
        _planned(0, drawn, {"messages": _asking(question), "max_tokens": max_tokens})
        for question, drawn in zip(questions, draws, strict=True)
    ]


def messages_of(planned: Planned) -> list[dict[str, str]]:
    """The messages that a planned chat sends."""
    messages: list[dict[str, str]] = msgspec.json.decode(planned.body)["messages"]
    return messages


def _asking(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _planned(at_ms: int, drawn: Draw, body: dict[str, object]) -> Planned:
    body["model"] = drawn.model
    if drawn.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return Planned(
        at_ms=at_ms,
        organisation=drawn.organisation,
        model=drawn.model,
        path=CHAT,
        body=msgspec.json.encode(body),
        stream=drawn.stream,
    )
