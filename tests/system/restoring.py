"""PostgreSQL's own programs for backups, as docs/04-operations/backup.md shows them, on a server of the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.system.services import PostgreSQL


class Archived(PostgreSQL):
    """A server that archives its log; it can be lost, and made anew from a dump or from a base backup and the log."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.archive, self.base = self.home / "archive", self.home / "base"
        self._made(self.archive)

    def command(self) -> list[str]:
        archived = f"test ! -f {self.archive}/%f && cp %p {self.archive}/%f"
        restored = f"cp {self.archive}/%f %p"
        return [
            *super().command(), "-c", "archive_mode=on", "-c", f"archive_command={archived}",
            "-c", f"restore_command={restored}", "-c", "wal_level=replica",
        ]  # fmt: skip

    def run(self, program: str, *arguments: str, database: str = "") -> str:
        """One of its programs, as the superuser; what it printed."""
        place = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "penstock"]
        done = subprocess.run(
            [str(self.programs / program), *place, *(["-d", database] if database else []), *arguments],
            env={**os.environ, "PGPASSWORD": self.password}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{program}: {done.stderr}"
        return done.stdout

    def dump(self) -> None:
        """The users, and the database: two files."""
        (self.home / "globals.sql").write_text(self.run("pg_dumpall", "--globals-only", "--no-role-passwords"))
        self.run("pg_dump", "-Fc", "-f", str(self.home / "penstock.dump"), database="penstock")

    def back_up_base(self) -> None:
        """A copy of all its files, taken while it runs."""
        self.run("pg_basebackup", "-D", str(self.base), "-X", "none", "-c", "fast")

    def archive_log(self) -> None:
        """Close the segment of the log that is being written, and wait until it is archived."""
        segment = self.run("psql", "-Atc", "SELECT pg_walfile_name(pg_current_wal_lsn())", database="postgres").strip()
        self.run("psql", "-Atc", "CHECKPOINT", "-c", "SELECT pg_switch_wal()", database="postgres")
        archived = "SELECT last_archived_wal FROM pg_stat_archiver"
        while self.run("psql", "-Atc", archived, database="postgres").strip() < segment:
            pass  # a file that is there may not be whole yet

    def lose(self) -> None:
        """The machine is gone, and with it every file but the backups."""
        self.kill()
        shutil.rmtree(self.data)

    def restore_dump(self) -> None:
        """An empty server, the users, the database."""
        self._initialise()
        self.start()
        self.run("psql", "-q", "-f", str(self.home / "globals.sql"), database="postgres")
        self.run("pg_restore", "--create", str(self.home / "penstock.dump"), database="postgres")

    def restore_base(self) -> None:
        """The files, and everything that the archive has of the log since."""
        shutil.copytree(self.base, self.data)
        (self.data / "recovery.signal").touch()
        self._made(self.data)
        self.start()

    def _made(self, place: Path) -> None:
        """A folder that belongs to the server."""
        place.mkdir(exist_ok=True)
        place.chmod(0o700)
        if os.getuid() == 0:
            subprocess.run(["chown", "-R", "postgres:postgres", str(place)], check=True)
