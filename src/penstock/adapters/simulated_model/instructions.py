"""What a request asks the simulated model to do: one text in the body, since Penstock passes no client header on.

The text is ``metadata.simulate``: words separated by spaces, each ``name`` or ``name=value``.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

HELP = """\
A request says in its body what shall happen: `"metadata": {"simulate": "tokens=40 fault=break_after:5"}`.

- `tokens=N`: produce N tokens for each output (never more than max_tokens)
- `prompt_tokens=N`, `cached_tokens=N`: report these instead of what was counted
- `fault=slow_first_byte:MS`: wait before the head of the answer
- `fault=slow_chunks:MS`: wait between chunks
- `fault=refuse:STATUS`: answer an error, produce nothing
- `fault=hang`: never answer; `fault=hang_after:N`: fall silent after N chunks
- `fault=break_before`: close the connection without an answer
- `fault=break_after:N`: close it after N chunks, or in the middle of a body
- `fault=error_after:N`: send an error event after N chunks, then end
- `fault=garbage_body`, `fault=garbage_stream`: send what is not JSON
- `fault=no_usage`: leave the usage out; `fault=no_done`: leave `[DONE]` out
- `fault=absurd_usage:negative`, `:string`, `:huge` or `:float`: report nonsense

Faults can be combined: `fault=no_usage fault=slow_chunks:50`.
"""

ABSURD = ("negative", "string", "huge", "float")
_NUMBERS = ("tokens", "prompt_tokens", "cached_tokens")
_FAULTS_WITH_NUMBER = {
    "slow_first_byte": "slow_first_byte_ms",
    "slow_chunks": "slow_chunks_ms",
    "refuse": "refuse_status",
    "hang_after": "hang_after",
    "break_after": "break_after",
    "error_after": "error_after",
}
_FAULTS_WITHOUT = ("hang", "break_before", "garbage_body", "garbage_stream", "no_usage", "no_done")


@dataclass(frozen=True, slots=True)
class Instructions:
    """One request's wishes; see ``HELP``. None means: as usual."""

    tokens: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int = 0
    slow_first_byte_ms: int = 0
    slow_chunks_ms: int = 0
    refuse_status: int = 0
    hang_after: int | None = None
    break_after: int | None = None
    error_after: int | None = None
    hang: bool = False
    break_before: bool = False
    garbage_body: bool = False
    garbage_stream: bool = False
    no_usage: bool = False
    no_done: bool = False
    absurd_usage: str = ""


NOTHING_SPECIAL = Instructions()


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> Instructions:
    """Read the text of ``metadata.simulate``.

    Raises:
        ValueError: A word is unknown or its number is not one; the message names it and the words that exist.
    """
    fields: dict[str, int | bool | str] = {}
    for term in text.split():
        name, _, value = term.partition("=")
        if name == "fault":
            fields.update(_fault(*value.partition(":")[::2]))
        elif name in _NUMBERS:
            fields[name] = _number(term, value)
        else:
            raise ValueError(f"metadata.simulate: {term!r} is not known; words: {', '.join((*_NUMBERS, 'fault'))}")
    return dataclasses.replace(NOTHING_SPECIAL, **fields)  # type: ignore[arg-type]


def _fault(name: str, value: str) -> dict[str, int | bool | str]:
    if name in _FAULTS_WITHOUT and not value:
        return {name: True}
    if name in _FAULTS_WITH_NUMBER:
        return {_FAULTS_WITH_NUMBER[name]: _number(f"fault={name}:{value}", value)}
    if name == "absurd_usage" and value in ABSURD:
        return {name: value}
    known = ", ".join((*_FAULTS_WITHOUT, *(f"{fault}:N" for fault in _FAULTS_WITH_NUMBER)))
    raise ValueError(
        f"metadata.simulate: fault {name!r} with {value!r} is not known; "
        f"faults: {known}, absurd_usage:{'|'.join(ABSURD)}"
    )


def _number(term: str, value: str) -> int:
    if not value.isascii() or not value.isdigit():
        raise ValueError(f"metadata.simulate: {term!r} needs a whole number, not {value!r}")
    return int(value)
