"""What the local model itself says it counted: its counters, and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from penstock.errors import UpstreamBroken
from penstock.ports import UpstreamClient, UpstreamRequest

ANSWER_BYTES_MAX = 16_000_000


@dataclass(frozen=True, slots=True)
class Counters:
    """Tokens since it was started. ``cached`` is a part of ``prompt``."""

    prompt: int
    cached: int
    completion: int


async def counters(client: UpstreamClient, url: str) -> Counters:
    """Read llama.cpp's own metrics.

    Raises:
        UpstreamError: It does not answer, or without them.
    """
    text = (await _ask(client, url + "/metrics", None)).decode()
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if not line.startswith("#") and name.startswith("llamacpp:"):
            found[name.removeprefix("llamacpp:")] = value
    try:
        fresh, cached = int(found["prompt_tokens_total"]), int(found["prompt_tokens_cached_total"])
        return Counters(prompt=fresh + cached, cached=cached, completion=int(found["tokens_predicted_total"]))
    except (KeyError, ValueError) as error:
        raise UpstreamBroken(f"the local model's metrics are not as expected: {error}") from error


async def prompt_tokens(client: UpstreamClient, url: str, messages: list[Any]) -> int:
    """Count a chat's prompt by its template and its tokenizer, without generating anything.

    Raises:
        UpstreamError: It does not answer.
    """
    rendered = msgspec.json.decode(await _ask(client, url + "/apply-template", {"messages": messages}))["prompt"]
    asked = {"content": rendered, "add_special": True, "parse_special": True}
    return len(msgspec.json.decode(await _ask(client, url + "/tokenize", asked))["tokens"])


async def _ask(client: UpstreamClient, url: str, body: dict[str, Any] | None) -> bytes:
    request = UpstreamRequest(
        method="GET" if body is None else "POST",
        url=url,
        headers={"content-type": "application/json"},
        body=b"" if body is None else msgspec.json.encode(body),
    )
    response = await client.open(request)
    try:
        answer = await response.read(ANSWER_BYTES_MAX)
    finally:
        response.close()
    if response.status != 200:
        raise UpstreamBroken(f"{url} answered {response.status}", status=response.status)
    return answer
