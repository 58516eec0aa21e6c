"""What a request is known by: its id, the client's own if it is harmless, else one of ours; and its trace."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import count
from random import SystemRandom

_HARMLESS = re.compile(rb"[A-Za-z0-9_-]{1,64}").fullmatch
_process = f"{SystemRandom().getrandbits(64):016x}"
_numbers = count(1)


def request_id(asked: bytes | None) -> str:
    """Take over the id that a client sent, or make one: unique, and no secret.

    Example:
        >>> request_id(b"mine-1"), len(request_id(b"not\\nmine"))
        ('mine-1', 32)
    """
    if asked is not None and _HARMLESS(asked):
        return asked.decode()
    return f"{_process}{next(_numbers):016x}"


def traceparent_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The trace that a request belongs to; None too if it is empty, as a worker without a trace sends it.

    Example:
        >>> traceparent_of([(b"traceparent", b"00-1-2-01")]), traceparent_of([(b"traceparent", b"")])
        ('00-1-2-01', None)
    """
    return next((value.decode("latin-1") for name, value in headers if name == b"traceparent" and value), None)
