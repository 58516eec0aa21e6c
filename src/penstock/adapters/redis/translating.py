"""Calls as the function library takes them, and its replies as the answers of ``penstock.quota.operations``.

Apart, since Bento sends the same texts: what is written here is the contract at the head of ``penstock.lua``.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec

from penstock.quota import operations
from penstock.quota.events import Event
from penstock.quota.operations import Call, Hold, LimitStanding, Reading, Refusal, State

PARTITIONS = 64
_FIELDS = (b"counters", b"reservations", b"deadlines", b"definitions")

_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_decode_event = msgspec.json.Decoder(Event).decode


def partition_of(organisation: str) -> int:
    """The partition that an organisation lives in: CRC-16 (XMODEM, as Redis Cluster's) modulo 64.

    Example:
        >>> partition_of("acme")
        40
    """
    return binascii.crc_hqx(organisation.encode(), 0) % PARTITIONS


def outbox_key(partition: int) -> bytes:
    """The stream that a partition's events are appended to."""
    return b"{q%d}:outbox" % partition


@lru_cache(maxsize=4096)
def keys_of(organisation: str) -> tuple[bytes, ...]:
    """The five keys of a call, in order.

    Example:
        >>> keys_of("acme")[0]
        b'{q40}:acme:counters'
    """
    partition, name = partition_of(organisation), organisation.encode()
    own = tuple(b"{q%d}:%s:%s" % (partition, name, field) for field in _FIELDS)
    return (*own, outbox_key(partition))


_FUNCTIONS: dict[type[Any], bytes] = {
    each: b"penstock_" + re.sub(r"(?<!^)(?=[A-Z])", "_", each.__name__).lower().encode()
    for each in (
        operations.Reserve, operations.Settle, operations.Void, operations.Touch, operations.Acquire,
        operations.Published, operations.Cancel, operations.Extend, operations.Sweep, operations.Define,
        operations.Ready, operations.Reassert, operations.Post, operations.Inspect, operations.Look,
    )
}  # fmt: skip


@lru_cache(maxsize=16384)
def _beginning(function: bytes, organisation: str) -> bytes:
    """All of a packed FCALL but its argument."""
    words = (b"FCALL", function, b"5", *keys_of(organisation))
    return b"*%d\r\n" % (len(words) + 1) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def write_call(call: Call[Any]) -> bytes:
    """The FCALL that carries out an operation, packed as Redis reads it."""
    argument = _encode(call)
    return b"%s$%d\r\n%s\r\n" % (_beginning(_FUNCTIONS[type(call)], call.organisation), len(argument), argument)


def _readings(rows: list[list[Any]]) -> tuple[Reading, ...]:
    return tuple([Reading(*row) for row in rows])


def _limits(rows: list[list[Any]]) -> tuple[LimitStanding, ...]:
    return tuple(LimitStanding(*row) for row in rows)


def _holds(rows: list[list[Any]]) -> tuple[Hold, ...]:
    for row in rows:
        row[6] = tuple((limit, amount) for limit, amount in row[6])
    return tuple(Hold(*row) for row in rows)


_FIELD_READERS: dict[str, Callable[[Any], Any]] = {
    "readings": _readings, "limits": _limits, "holds": _holds, "state": State, "refusal": Refusal,
}  # fmt: skip

_ANSWERS: dict[str, type[Any]] = {
    each.__name__: each
    for each in (
        operations.Reserved, operations.Denied, operations.Duplicate, operations.Mismatch, operations.NoKey,
        operations.OutOfScope, operations.NotReady, operations.ClockSkew, operations.Invalid, operations.Unknown,
        operations.Settled, operations.Done, operations.Touched, operations.Cancelled, operations.Extended,
        operations.Run, operations.Wait, operations.Never, operations.Gone, operations.Swept, operations.Inspected,
        operations.Refused, operations.Seen,
    )
}  # fmt: skip


def read_answer(reply: bytes) -> Any:
    """The answer that a reply tells.

    Example:
        >>> read_answer(b'{"answer":"Settled","state":"posted","cost_nanos":7}')
        Settled(state=<State.POSTED: 'posted'>, cost_nanos=7)
    """
    fields = _decode(reply)
    answer = _ANSWERS[fields.pop("answer")]
    for name in fields.keys() & _FIELD_READERS.keys():
        fields[name] = _FIELD_READERS[name](fields[name])
    return answer(**fields)


def read_event(text: bytes) -> Event:
    """The event that an entry of the outbox carries."""
    return _decode_event(text)
