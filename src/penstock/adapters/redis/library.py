"""The function library in Redis: which text it is, whether it is there, and putting it there."""

from __future__ import annotations

import re
from enum import StrEnum
from importlib.resources import files
from typing import Any, Final

from penstock.adapters.redis.client import RedisClient
from penstock.adapters.redis.wire import pack

SOURCE: Final = files("penstock.adapters.redis").joinpath("penstock.lua").read_text(encoding="utf-8")


def _version_of(source: str) -> int:
    found = re.search(r"^local VERSION = '(\d+)'$", source, re.MULTILINE)
    assert found is not None, "penstock.lua names no version"
    return int(found[1])


VERSION: Final = _version_of(SOURCE)


class Loaded(StrEnum):
    """What ``load_library`` found and did."""

    NEW = "new"
    REPLACED = "replaced"
    SAME = "same"
    NEWER = "newer"  # a later Penstock was here already: its library also serves the earlier ones


async def load_library(client: RedisClient, *, source: str = SOURCE) -> Loaded:
    """Put the library into Redis, unless it or a later one is there. As often as you like, from anywhere at once.

    Args:
        client: Of an account that may load functions.

    Raises:
        StoreUnavailable: Redis cannot be reached.
        Refusal: The account may not.
    """
    found = _named(await client.ask(pack("FUNCTION", "LIST", "LIBRARYNAME", "penstock", "WITHCODE")))
    if found == source:
        return Loaded.SAME
    if found is not None and _version_of(found) > _version_of(source):
        return Loaded.NEWER
    await client.ask(pack("FUNCTION", "LOAD", "REPLACE", source))
    return Loaded.NEW if found is None else Loaded.REPLACED


def _named(libraries: list[Any]) -> str | None:
    for fields in libraries:
        told = dict(zip(fields[::2], fields[1::2], strict=True))
        code: bytes = told[b"library_code"]
        return code.decode()
    return None
