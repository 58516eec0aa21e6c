"""Whatever is no call is refused by the function library and changes nothing, as is a call whose state is damaged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from penstock.adapters.redis import load_library, open_store
from penstock.adapters.redis.address import read_address
from penstock.adapters.redis.client import RedisClient, pack
from penstock.adapters.redis.translating import keys_of, write_call
from penstock.adapters.redis.wire import Refusal
from penstock.quota import Key
from tests.adapters.redis.desks import WINDOW, calls_of_a_life, define, now_ms, ready, reserve, settle
from tests.system.services import Redis

RESERVE = json.loads(write_call(reserve(7)).split(b"\r\n")[-2])
SETTLE = json.loads(write_call(settle(1)).split(b"\r\n")[-2])


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """In which one of each operation was carried out."""
    service = Redis(tmp_path_factory.mktemp("arguments"))
    service.start()
    asyncio.run(_fill(service.url))
    yield service
    service.stop()


async def _fill(url: str) -> None:
    client = RedisClient(read_address(url))
    await load_library(client)
    await client.close()
    async with open_store(url) as store:
        calls: list[Any] = [define(), ready(), reserve(1), *calls_of_a_life()[2:9]]
        for call in calls:
            await store.apply(call)


def refused(service: Redis, *words: str | bytes) -> tuple[str, bool]:
    """What Redis says to a command, and whether all of its keys are as they were."""

    async def run() -> tuple[str, bool]:
        client = RedisClient(read_address(service.url))
        try:
            before = await _dump(client)
            with pytest.raises(Refusal) as found:
                await client.ask(pack(*words))
            return str(found.value), await _dump(client) == before
        finally:
            await client.close()

    return asyncio.run(run())


async def _dump(client: RedisClient) -> dict[bytes, bytes]:
    keys = sorted(await client.ask(pack("KEYS", "*")))
    return {key: await client.ask(pack("DUMP", key)) for key in keys}


WRONG: dict[str, tuple[str, Any, str]] = {
    "no JSON": ("reserve", "{", "no JSON object"),
    "no object": ("reserve", "[]", "is missing"),
    "a number": ("settle", "7", "no JSON object"),
    "nothing": ("look", "{}", "is missing"),
    "a field missing": ("reserve", {k: v for k, v in RESERVE.items() if k != "nonce"}, "nonce is missing"),
    "a field of another type": ("reserve", {**RESERVE, "body_bytes": "200"}, "body_bytes is a string, not a number"),
    "a fraction": ("reserve", {**RESERVE, "body_bytes": 1.5}, "body_bytes is no integer"),
    "null": ("reserve", {**RESERVE, "key": None}, "key is missing"),
    "usage of another type": (
        "settle",
        {**SETTLE, "usage": {**SETTLE["usage"], "cached": "0"}},
        "usage.cached is a string",
    ),
    "usage missing": ("settle", {**SETTLE, "usage": None}, "usage is missing"),
    "another organisation": ("settle", {**SETTLE, "organisation": "zeta"}, "five keys of the organisation"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_call_is_refused_and_changes_nothing(case: str, filled: Redis) -> None:
    operation, argument, why = WRONG[case]
    text = argument if isinstance(argument, str) else json.dumps(argument)
    said, is_unchanged = refused(filled, "FCALL", f"penstock_{operation}", "5", *keys_of("acme"), text)
    assert said.startswith("PENSTOCK ")
    assert why in said
    assert is_unchanged


@pytest.mark.parametrize("wrong", range(5))
def test_a_key_of_somebody_else_is_refused(wrong: int, filled: Redis) -> None:
    keys = list(keys_of("acme"))
    keys[wrong] = keys_of("zeta")[wrong]
    said, is_unchanged = refused(filled, "FCALL", "penstock_settle", "5", *keys, json.dumps(SETTLE))
    assert said.startswith("PENSTOCK five keys")
    assert is_unchanged


def test_a_damaged_counter_stops_its_calls_and_is_never_counted_as_zero(service: Redis) -> None:
    asyncio.run(_fill(service.url))

    async def damage() -> None:
        client = RedisClient(read_address(service.url))
        await client.ask(pack("HDEL", keys_of("acme")[0], WINDOW))
        await client.close()

    asyncio.run(damage())
    argument = json.dumps({**RESERVE, "caller_now_ms": now_ms(), "job_deadline_ms": now_ms() + 60_000})
    said, is_unchanged = refused(service, "FCALL", "penstock_reserve", "5", *keys_of("acme"), argument)
    assert f"the counter of {WINDOW} is missing" in said
    assert is_unchanged


def reordered(value: Any) -> Any:
    """The same for whoever reads JSON, with the names of objects and lists of names the other way round."""
    if isinstance(value, dict):
        return {name: reordered(value[name]) for name in reversed(value)}
    if isinstance(value, list):
        found = [reordered(each) for each in value]
        return found[::-1] if all(isinstance(each, str) for each in found) else found
    return value


def test_definitions_are_the_same_in_whatever_order_they_are_told(service: Redis) -> None:
    asyncio.run(_fill(service.url))
    names = ["chat.completions", "completions", "embeddings", "responses"]
    key = Key(id="n", team="search", macs=(("ab", 0),), routes=frozenset(names), models=frozenset({"a", "b", "c"}))
    call = replace(define(), version=define().version + 1)
    call = replace(call, definitions=replace(call.definitions, keys={**call.definitions.keys, "n": key}))
    told = json.loads(write_call(call).split(b"\r\n")[-2])
    other = json.loads(json.dumps(told))
    other["definitions"]["keys"]["n"]["routes"] = names[:3]
    later = json.loads(json.dumps(told))  # of a later version, which knows something that this key does not use
    later["definitions"]["keys"]["n"]["later"] = None

    async def answers() -> list[Any]:
        client = RedisClient(read_address(service.url))
        commands = (
            pack("FCALL", "penstock_define", 5, *keys_of("acme"), json.dumps(each))
            for each in (told, reordered(told), other, later)
        )
        found = [json.loads(await client.ask(each))["answer"] for each in commands]
        await client.close()
        return found

    assert asyncio.run(answers()) == ["Done", "Done", "Refused", "Done"]
