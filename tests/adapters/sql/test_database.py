"""A database is created, recognised, refused when it is newer, and served by one process at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, text

from penstock.adapters.sql import definition_tables, job_tables, keeping_tables
from penstock.adapters.sql.database import migrate, open_engine, sole_service, writing
from penstock.adapters.sql.migrations import revisions
from penstock.adapters.sql.tables import WRITTEN_ONCE, metadata
from penstock.errors import StoreUnavailable


def test_migrations_make_exactly_the_tables_that_the_code_names(sqlite: Engine) -> None:
    assert {job_tables.jobs, definition_tables.limits, keeping_tables.keeper} <= set(metadata.tables.values())
    with sqlite.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_every_table_written_once_has_its_two_triggers(sqlite: Engine) -> None:
    with sqlite.connect() as connection:
        found = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars()
        assert set(found) == {f"{table}_no_{verb}" for table in WRITTEN_ONCE for verb in ("update", "delete")}


def test_a_commit_is_synced_and_readers_do_not_block_it(sqlite: Engine) -> None:
    with sqlite.connect() as connection:
        settings = [connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous")]
    assert settings == ["wal", 2]  # 2 is FULL


def test_a_current_database_is_left_alone_without_importing_alembic(path: Path, sqlite: Engine) -> None:
    code = (
        "import sys; from pathlib import Path; from penstock.adapters.sql.database import migrate, open_engine\n"
        f"migrate(open_engine(Path({str(path)!r}))); sys.exit('alembic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_newer_database_is_refused_with_the_fix(sqlite: Engine) -> None:
    with writing(sqlite) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreUnavailable, match=f"version 9999, newer.* knows {revisions()[-1]}; run the penstock"):
        migrate(sqlite)


def test_a_file_that_is_no_database_is_refused_with_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database at all, " * 100)
    engine = open_engine(path)
    with pytest.raises(StoreUnavailable, match="file is not a database; check that the path"):
        migrate(engine)
    engine.dispose()


def test_two_processes_that_migrate_at_once_both_succeed(path: Path) -> None:
    code = (
        "from pathlib import Path; from penstock.adapters.sql.database import migrate, open_engine\n"
        f"migrate(open_engine(Path({str(path)!r})))"
    )
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]


def test_a_second_service_is_refused_and_the_first_one_named(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from penstock.adapters.sql.database import sole_service\n"
        f"with sole_service(Path({str(path)!r})):\n    print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    with pytest.raises(StoreUnavailable, match=rf"process {child.pid}\) already serves"), sole_service(path):
        pass
    child.kill()
    child.communicate()
    with sole_service(path):
        assert path.with_name("penstock.db.lock").exists()
