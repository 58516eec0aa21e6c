"""What a model server streams, changed and cut at random: passed on as events, or given up; and cuts change nothing."""

from __future__ import annotations

import json
from random import Random

import msgspec
import pytest

from penstock.errors import UpstreamBroken
from penstock.lanes.chunks import Chunks
from penstock.lanes.event_stream import EventSplitter
from tests.counts import count
from tests.fuzzing.mutating import Kept, found, inputs


def chunk(text: str, **more: object) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    told = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "up", "choices": [choice], **more}
    return b"data: " + msgspec.json.encode(told) + b"\n\n"


USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, "prompt_tokens_details": {"cached_tokens": 2}}
END = b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
STREAMS = [
    chunk("Say") + chunk(" one") + chunk(" thing") + END + chunk("", choices=[], usage=USAGE) + DONE,
    chunk("a", usage=USAGE) + chunk("b", usage=USAGE) + END + DONE,
    b": alive\n\n" + chunk("h\u00e9 \U0001f600").replace(b"\n", b"\r\n") + (END + DONE).replace(b"\n", b"\r"),
    b"event: message\nid: 7\nretry: 10\ndata: {\"choices\":\ndata: []}\n\n" + END,
    b'data: {"error":{"message":"no"}}\n\n',
    b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{"}}]}}]}\n\n' + END,
    b'data: {"choices":[{"index":0,"text":"a","logprobs":{"tokens":["a"]}},{"index":1,"text":"b"}]}\n\n' + END,
]  # fmt: skip


def shown(raw: bytes, cuts: list[int], *, include_usage: bool) -> tuple[bytes, int, str]:
    """What the client sees, the tokens counted, and how it ended."""
    splitter = EventSplitter()
    chunks = Chunks(name="chat-small", include_usage=include_usage, bytes_per_token=4.0)
    out = b""
    try:
        for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True):
            out += chunks.feed(splitter.feed(raw[start:stop]))
            if chunks.failure is not None or chunks.is_done:
                break
        if not chunks.is_done:
            out += chunks.end(splitter.rest())
    except UpstreamBroken as error:
        return out, chunks.tokens, error.message
    return out, chunks.tokens, "done"


def check(raw: bytes, random: Random) -> None:
    include_usage = random.random() < 0.5
    whole = shown(raw, [], include_usage=include_usage)
    cuts = sorted(random.randrange(len(raw) + 1) for _ in range(random.randrange(6)))
    cut = shown(raw, cuts, include_usage=include_usage)
    assert (cut[0], cut[1]) == (whole[0], whole[1]), f"cut at {cuts}"
    assert whole[1] >= 0
    for event in filter(None, whole[0].split(b"\n\n")):
        data = b"\n".join(line.partition(b":")[2] for line in event.split(b"\n") if line.startswith(b"data:"))
        told = json.loads(data, parse_int=str)  # however large: JSON has no bound
        assert told.get("model", "chat-small") == "chat-small"
        assert not {byte for byte in event if byte < 0x20} - {0x09, 0x0A}


@pytest.mark.torture
def test_no_stream_is_our_fault_and_no_cut_changes_it(seed: int) -> None:
    for raw in found("event_streams"):
        check(raw, Random(1))
    for number, raw in inputs(seed, STREAMS, count(300_000, short=4_000)):
        with Kept("event_streams", number, raw):
            check(raw, Random(number))
