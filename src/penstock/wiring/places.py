"""Where a service keeps what it writes: one directory, and the names within it that every command must agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import StoreUnavailable


def default_data_directory(environment: Mapping[str, str]) -> Path:
    """Where state belongs on this machine, by the XDG base directory specification.

    Example:
        >>> str(default_data_directory({"XDG_STATE_HOME": "/var/state"}))
        '/var/state/penstock'
    """
    named = environment.get("XDG_STATE_HOME", "")
    base = Path(named) if named.startswith("/") else Path(environment.get("HOME") or Path.home()) / ".local" / "state"
    return base / "penstock"


@dataclass(frozen=True, slots=True)
class Places:
    """The data directory, and what lies in it.

    Args:
        data: Readable by its owner only; see ``create``.
    """

    data: Path

    @classmethod
    def choose(cls, option: Path | None, configured: str | None, environment: Mapping[str, str]) -> Places:
        """``--data`` or ``PENSTOCK_DATA``, else ``server.data_directory``, else the default of this machine."""
        return cls(option or (Path(configured) if configured else default_data_directory(environment)))

    @property
    def database(self) -> Path:
        """Ledger, keys and audit log of the embedded default."""
        return self.data / "penstock.db"

    @property
    def pepper(self) -> Path:
        """The pepper that the embedded default made for itself."""
        return self.data / "pepper"

    @property
    def spool(self) -> Path:
        """Ends of reservations that the quota store of a cluster has not acknowledged."""
        return self.data / "spool.jsonl"

    @property
    def running(self) -> Path:
        """Written by the service while it runs: ``{pid, url, operations_url}``."""
        return self.data / "serve.json"

    @property
    def operations(self) -> Path:
        """Written by ``penstock up``: the operations port of each of its processes, by name."""
        return self.data / "operations.json"

    def create(self) -> None:
        """Make the directory, for its owner only, if it is not there.

        Raises:
            StoreUnavailable: It cannot be made.
        """
        try:
            self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable(
                f"cannot make the data directory {self.data}: {error.strerror}; name another with --data"
            ) from error
