"""Ends of reservations on disk, for a quota store that lives elsewhere and may be away."""

from penstock.adapters.spooling.disk import DiskFile
from penstock.adapters.spooling.spool import CRASH_POINTS, FileSpool

__all__ = ["CRASH_POINTS", "DiskFile", "FileSpool"]
