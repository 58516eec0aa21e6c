"""Ends of reservations on disk, for a quota store that lives elsewhere and may be away."""

from penstock.adapters.spooling.spool import FileSpool

__all__ = ["FileSpool"]
