"""The ``Prefer`` header: what a client would rather have, as far as it is understood here.

Source:
    RFC 7240, sections 4.1 (respond-async) and 4.3 (wait).
"""

from __future__ import annotations

from typing import NamedTuple

WAIT_S_MAX = 60


class Preference(NamedTuple):
    """Args:
    responds_async: The client would rather have a job than an answer.
    wait_s: How long it would wait for the answer first; at most a minute.
    """

    responds_async: bool = False
    wait_s: int = 0


def read_preference(header: bytes) -> Preference:
    """Read the header; what is not understood is passed over, as the RFC asks.

    Example:
        >>> read_preference(b"respond-async, wait=10"), read_preference(b"return=minimal")
        (Preference(responds_async=True, wait_s=10), Preference(responds_async=False, wait_s=0))
    """
    responds_async, wait_s = False, 0
    for part in header.decode("latin-1").lower().split(","):
        name, _, value = part.partition(";")[0].strip().partition("=")
        if name == "respond-async":
            responds_async = True
        elif name == "wait" and value.strip('"').isdecimal():
            wait_s = min(WAIT_S_MAX, int(value.strip('"')[:6]))
    return Preference(responds_async, wait_s)
