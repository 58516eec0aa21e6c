"""How a request's trace reaches the keeper: by its reservation's nonce.

A nonce only has to differ from attempt to attempt, as the id of a recorded request's span does. So that takes its
place, the quota store hands it on with each event of the reservation, and nothing else has to carry it.
"""

from __future__ import annotations

import re
from typing import Final

from penstock.ports import Trace

_TRACEPARENT: Final = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def nonce_of(trace: Trace | None, random_bits: int) -> str:
    """The nonce of an attempt to reserve.

    Args:
        random_bits: 80 of them.
    """
    return f"{random_bits:020x}" if trace is None or not trace.is_recorded else trace.traceparent


def traceparent_of(nonce: str) -> str | None:
    """The trace of the request that reserved with this nonce; None if it is not recorded.

    Example:
        >>> traceparent_of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
        >>> traceparent_of(nonce_of(None, 7)) is None
        True
    """
    return nonce if _TRACEPARENT.fullmatch(nonce) else None
