"""The database's versions, one file each, carried inside the package so that an installed wheel can migrate.

Files are named ``0001_what.py``; the number is the revision. A database whose revision has no file here is newer
than this code.
"""

from __future__ import annotations

from importlib import resources


def revisions() -> tuple[str, ...]:
    """Every revision that this code knows, oldest first; without importing Alembic, which takes its time."""
    files = resources.files(f"{__name__}.versions").iterdir()
    return tuple(sorted(file.name[:4] for file in files if file.name.endswith(".py") and file.name[:4].isdigit()))
