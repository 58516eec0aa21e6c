"""Reads traces of real requests: when they arrived, how long they were, how long their answers."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from penstock.errors import InvalidRequest

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a trace.

    Args:
        at_ms: After the first one.
        prompt: Tokens of the prompt.
        completion: Tokens of the answer.
    """

    at_ms: int
    prompt: int
    completion: int


def read(lines: Iterable[str], *, name: str) -> Iterator[Arrival]:
    """Read a trace in the format of the Azure LLM inference traces: CSV with ``COLUMNS``, in order of time.

    Args:
        name: Of the file, for errors.

    Raises:
        InvalidRequest: A column is missing, or a line does not hold a time and two numbers; it is named.

    Example:
        >>> list(read(["TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:15:46.6805900,374,44"], name="t"))
        [Arrival(at_ms=0, prompt=374, completion=44)]

    Source:
        AzurePublicDataset, "Azure LLM inference trace 2023".
    """
    rows = csv.DictReader(lines)
    missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
    if missing:
        raise InvalidRequest(f"{name}: no column {', '.join(missing)}; a trace has the columns {','.join(COLUMNS)}")
    first: datetime | None = None
    before_ms = 0
    for row in rows:
        try:
            at = datetime.fromisoformat(row["TIMESTAMP"])
            prompt, completion = int(row["ContextTokens"]), int(row["GeneratedTokens"])
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"{name}, line {rows.line_num}: {error}; wanted: a time and two numbers") from error
        first = first or at
        elapsed = at - first
        at_ms = elapsed.days * 86_400_000 + elapsed.seconds * 1000 + elapsed.microseconds // 1000
        if prompt < 1 or completion < 0 or at_ms < before_ms:
            raise InvalidRequest(
                f"{name}, line {rows.line_num}: {prompt} and {completion} tokens after {at_ms} ms; "
                "a prompt has at least one token, an answer none or more, and times never go back"
            )
        before_ms = at_ms
        yield Arrival(at_ms, prompt, completion)
