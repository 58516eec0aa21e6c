"""Server-sent events come out the same however the network cut them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import UpstreamBroken
from penstock.lanes.event_stream import EVENT_BYTES_MAX, EventSplitter, event_data

LINES = st.sampled_from(["data: a", "data:b", "data: é\\n", ": ping", "event: x", "data", "id: 7", "data: {}"])
ENDS = st.sampled_from(["\n", "\r\n", "\r"])
STREAMS = st.lists(st.tuples(st.lists(LINES, max_size=3), ENDS), max_size=8)


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:stop] for start, stop in pairwise(places)]


def events_of(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    splitter = EventSplitter()
    events = [event for piece in pieces for event in splitter.feed(piece)]
    return events, splitter.rest()


@given(STREAMS, st.lists(st.integers(0, 10_000), max_size=12))
def test_any_cut_of_the_same_bytes_gives_the_same_events(stream: list[tuple[list[str], str]], cuts: list[int]) -> None:
    data = "".join("".join(line + end for line in lines) + end for lines, end in stream).encode()
    assert events_of(pieces_of(data, cuts)) == events_of([data])


@given(STREAMS, st.lists(st.integers(0, 10_000), max_size=12))
def test_events_are_what_the_standard_says(stream: list[tuple[list[str], str]], cuts: list[int]) -> None:
    data = "".join("".join(line + end for line in lines) + end for lines, end in stream).encode() + b"\n"
    events, _ = events_of(pieces_of(data, cuts))
    found = [given_data for event in events if (given_data := event_data(event)) is not None]
    expected = []
    for lines, _ in stream:
        parts = [line[5:].removeprefix(" ") for line in lines if line == "data" or line.startswith("data:")]
        if parts:
            expected.append("\n".join(parts).encode())
    assert found == expected


@given(st.lists(LINES, min_size=1, max_size=3))
def test_an_event_is_given_as_soon_as_its_last_byte_is_there(lines: list[str]) -> None:
    splitter = EventSplitter()
    data = "".join(line + "\n" for line in lines).encode()
    assert splitter.feed(data) == []
    assert splitter.feed(b"\n") == [data + b"\n"]


def test_an_event_without_end_is_refused_before_it_fills_the_memory() -> None:
    splitter = EventSplitter()
    for _ in range(EVENT_BYTES_MAX // 65_536):
        assert splitter.feed(b"x" * 65_536) == []
    with pytest.raises(UpstreamBroken, match="more than"):
        splitter.feed(b"x")
