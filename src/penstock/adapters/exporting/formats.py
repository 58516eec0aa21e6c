"""One class for each form that exported rows can have. Each takes portions of rows, and keeps none.

Source:
    CloudEvents 1.0.2, JSON event format: one event a line, as `application/x-ndjson`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from io import TextIOWrapper
from typing import IO, Any, NamedTuple, Protocol
from urllib.parse import quote

import msgspec

from penstock.errors import ConfigurationError

Rows = Sequence[Mapping[str, Any]]
OPTIONAL = frozenset({"team", "author", "corrects"})
TEXTS = OPTIONAL | {"reservation", "kind", "organisation", "key", "model", "lane", "usage_source", "reason"}


class RowWriter(Protocol):
    """Writes rows to a file."""

    def write(self, rows: Rows) -> None:
        """A portion."""
        ...

    def close(self) -> None:
        """The end of what belongs together; the file stays open."""
        ...


class CsvWriter:
    """A line for each row, under a line of names. Empty are a missing team, and what only corrections have."""

    def __init__(self, file: IO[bytes], columns: Sequence[str]) -> None:
        self._text = TextIOWrapper(file, "utf-8", newline="")
        self._columns = columns
        self._csv = csv.writer(self._text, lineterminator="\n")
        self._csv.writerow(columns)

    def write(self, rows: Rows) -> None:
        """See ``RowWriter``, as ``close``."""
        for row in rows:
            self._csv.writerow(["" if row[name] is None else row[name] for name in self._columns])

    def close(self) -> None:
        """The end."""
        self._text.flush()
        self._text.detach()


class CloudEventsWriter:
    """A line of JSON for each row: a CloudEvent whose id is the same however often it is exported."""

    def __init__(self, file: IO[bytes], columns: Sequence[str]) -> None:
        self._file = file
        self._columns = columns
        self._encode = msgspec.json.Encoder().encode

    def write(self, rows: Rows) -> None:
        """See ``RowWriter``, as ``close``."""
        self._file.writelines(self._encode(self._event(row)) + b"\n" for row in rows)

    def close(self) -> None:
        """The end."""
        self._file.flush()

    def _event(self, row: Mapping[str, Any]) -> dict[str, Any]:
        at_ms = row["occurred_at_ms"]
        instant = datetime.fromtimestamp(at_ms // 1000, UTC).replace(microsecond=at_ms % 1000 * 1000)
        return {
            "specversion": "1.0",
            "id": f"{row['reservation']}/{row['kind']}",
            "source": f"/penstock/organisations/{quote(row['organisation'], safe='')}",
            "type": f"penstock.ledger.{row['kind']}",
            "time": instant.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "subject": row["model"],
            "datacontenttype": "application/json",
            "data": {name: row[name] for name in self._columns},
        }


class ParquetWriter:
    """Columns of text and 64-bit integers; one row group for each portion.

    Raises:
        ConfigurationError: pyarrow is not installed.
    """

    def __init__(self, file: IO[bytes], columns: Sequence[str]) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            fix = "install penstock[parquet], or choose csv or cloudevents"
            raise ConfigurationError((f"--format: parquet needs pyarrow, which is not installed; {fix}",)) from error
        fields = [
            pyarrow.field(name, pyarrow.string() if name in TEXTS else pyarrow.int64(), nullable=name in OPTIONAL)
            for name in columns
        ]
        self._schema = pyarrow.schema(fields)
        self._table = pyarrow.Table.from_pylist
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema, compression="zstd")

    def write(self, rows: Rows) -> None:
        """See ``RowWriter``, as ``close``."""
        self._writer.write_table(self._table([dict(row) for row in rows], schema=self._schema))

    def close(self) -> None:
        """The footer, without which the file cannot be read."""
        self._writer.close()


class Format(NamedTuple):
    """Args:
    suffix: Of a file's name.
    """

    suffix: str
    writer: Callable[[IO[bytes], Sequence[str]], RowWriter]


FORMATS = {
    "csv": Format("csv", CsvWriter),
    "parquet": Format("parquet", ParquetWriter),
    "cloudevents": Format("jsonl", CloudEventsWriter),
}
