"""Writes ledger rows for other programs: CSV, Parquet, CloudEvents."""

from penstock.adapters.exporting.formats import FORMATS, Format, RowWriter

__all__ = ["FORMATS", "Format", "RowWriter"]
