"""What a token is here, so that anybody can count along: four bytes of text, rounded up, and one for each message.

Text that is produced keeps to the same rule: each of its tokens is a word of four bytes.
"""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from collections.abc import Sequence

BYTES_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 1
DIMENSIONS = 16

WORDS = ("The ", "gate", " is ", "open", " and", " the", " jet", " of ", "lake", " now", " can", " run", " on. ")
_WORDS = tuple(word[:BYTES_PER_TOKEN] for word in WORDS)


def text_tokens(text: str) -> int:
    """Count a text.

    Example:
        >>> text_tokens("penstock"), text_tokens("pen"), text_tokens("")
        (2, 1, 0)
    """
    return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)


def text_of_tokens(tokens: int) -> str:
    """Write a text of exactly ``tokens`` tokens.

    Example:
        >>> text_of_tokens(3)
        'The gate is '
    """
    whole, rest = divmod(tokens, len(_WORDS))
    return "".join(_WORDS) * whole + "".join(_WORDS[:rest])


def word(index: int) -> str:
    """The token at ``index`` of every text that is produced."""
    return _WORDS[index % len(_WORDS)]


def token_ids(text: str) -> list[int]:
    """Give each token of a text an id, the same each time."""
    raw = text.encode("utf-8", "surrogatepass")
    return [int.from_bytes(raw[at : at + BYTES_PER_TOKEN], "big") for at in range(0, len(raw), BYTES_PER_TOKEN)]


def embedding(content: bytes) -> list[float]:
    """Turn content into a vector of unit length, the same for the same content."""
    raw = struct.unpack(f">{DIMENSIONS}H", hashlib.sha256(content).digest())
    centred = [value - 32767.5 for value in raw]
    length = math.sqrt(sum(value * value for value in centred))
    return [value / length for value in centred]


def base64_floats(vector: Sequence[float]) -> str:
    """Encode a vector as ``encoding_format: base64`` asks: 32-bit floats, little-endian."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
