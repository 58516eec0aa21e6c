"""The function library with a clock that tests set: the one line that reads TIME is replaced, and nothing else."""

from __future__ import annotations

import re

from penstock.adapters.redis.client import pack
from penstock.adapters.redis.library import SOURCE

_READS_TIME = re.compile(r"^local function time_ms\(\).*$", re.MULTILINE)
_SETS_TIME = """
redis.register_function('penstock_set_time', function(_, arguments) told_ms = tonumber(arguments[1]) end)
"""


def clocked(source: str) -> str:
    """A text of the library, whose clock stands until it is set."""
    (line,) = _READS_TIME.findall(source)
    assert source.count("'TIME'") == 1, "TIME is read in one line"
    return source.replace(line, "local told_ms = 0 local function time_ms() return told_ms end") + _SETS_TIME


CLOCKED = clocked(SOURCE)


def set_time(now_ms: int) -> bytes:
    """The command that sets the library's clock, Unix milliseconds."""
    return pack("FCALL", "penstock_set_time", 0, now_ms)
