"""Inputs that nobody meant to send: seeds of a corpus, changed a little at random, again by the same number.

Small and our own, since what is wanted is a million inputs in minutes that a number repeats: bytes flipped, cut,
doubled, put in from another seed or from a list of words that have broken parsers before. What once broke something is
kept in ``found/<target>/``, one file each, as Python writes bytes, and tried first for ever after.
"""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Final

FOUND: Final = Path(__file__).parent / "found"
BYTES_MAX: Final = 20_000
WORDS: Final = (
    b"null", b"true", b"[]", b"{}", b"[[", b"]}", b'"', b"'", b"\\", b"\\u0000", b"\\ud800", b"\\u202e", b"\x00",
    b"\n", b"\r\n", b"\r", b"\xff", b"\xc3\x28", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80",
    b"\xe2\x80\xa8", b"-0", b"-1", b"1e999", b"-1e-999", b"0.1", b"NaN", b"Infinity", b"9" * 30, b"9" * 5_000,
    b"1" + b"0" * 18, b"9223372036854775808", b"2147483648", b"4503599627370497", b"[" * 100, b'{"a":' * 100,
    b"a" * 1_000, b":", b",", b"data: ", b"data:", b"\n\n", b"event: error\n", b"id: 1\n", b"retry: 0\n", b": \n",
    b"[DONE]", b"data: [DONE]\n\n", b"%00", b"%s%n", b"${jndi:ldap://x}", b"${! json() }",
    b"'; DROP TABLE ledger; --", b"<<: *a\n", b"&a [*a, *a]", b"!!python/object:os.system", b"---\n", b"- ", b"0x10",
    b"0o7", b"1_000", b"~", b"? ", b"| ", b"> ",
)  # fmt: skip


def inputs(seed: int, corpus: Sequence[bytes], count: int) -> Iterator[tuple[int, bytes]]:
    """So many inputs, each with the number that makes it again alone: ``mutated(number, corpus)``."""
    for number in range(seed, seed + count):
        yield number, mutated(number, corpus)


def mutated(number: int, corpus: Sequence[bytes]) -> bytes:
    """The input of a number.

    Example:
        >>> mutated(7, [b"abc"]) == mutated(7, [b"abc"])
        True
    """
    random = Random(number)
    data = bytearray(random.choice(corpus))
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        random.choice(_CHANGES)(random, data, corpus)
    return bytes(data[:BYTES_MAX])


@dataclass(frozen=True)
class Kept:
    """A context that tells, of whatever goes wrong in it, which input it was and where to keep it."""

    target: str
    number: int
    raw: bytes

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            error.add_note(f"keep this in {FOUND.name}/{self.target}: mutated({self.number}) is {self.raw!r}")


def found(target: str) -> list[bytes]:
    """What once broke a target, and must not again."""
    return [bytes(literal_eval(file.read_text())) for file in sorted((FOUND / target).glob("*.txt"))]


def _at(random: Random, data: bytearray) -> int:
    return random.randrange(len(data) + 1)


def _flip(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _set(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] = random.randrange(256)


def _cut(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    start = _at(random, data)
    del data[start : start + random.choice((1, 2, 8, 64, 1_000))]


def _double(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    start = _at(random, data)
    piece = data[start : start + random.choice((1, 4, 32, 200))]
    data[start:start] = piece * random.choice((1, 1, 2, 20))


def _word(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    start = _at(random, data)
    data[start : start + random.choice((0, 0, 1, 4, 16))] = random.choice(WORDS)


def _value(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    """In the place of what stands between a colon and what ends it: a value of JSON or YAML."""
    colons = [index for index, byte in enumerate(data) if byte == 0x3A]
    if colons:
        start = random.choice(colons) + 1
        ends = [at for at in (data.find(end, start) for end in (b",", b"}", b"\n")) if at >= 0]
        data[start : min(ends, default=start)] = b" " + random.choice(WORDS)


def _splice(random: Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    other = random.choice(corpus)
    start, size = random.randrange(len(other) + 1), random.choice((4, 40, 400))
    at = _at(random, data)
    data[at:at] = other[start : start + size]


_CHANGES: Final[tuple[Callable[[Random, bytearray, Sequence[bytes]], None], ...]] = (
    _flip, _set, _cut, _double, _word, _word, _value, _value, _splice,
)  # fmt: skip
