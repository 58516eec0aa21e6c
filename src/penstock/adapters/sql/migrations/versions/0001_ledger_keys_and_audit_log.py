"""The ledger, the state that a restart needs, API keys and the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create everything."""
    _ledger()
    _state()
    _keys()
    _audit_log()
    if op.get_bind().dialect.name == "sqlite":
        _write_once_in_sqlite()
    else:
        _write_once_in_postgresql()


def _write_once_in_sqlite() -> None:
    for table in ("ledger", "audit_log"):
        for verb in ("update", "delete"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb} BEFORE {verb.upper()} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is written once: no {verb}'); END"
            )


def _write_once_in_postgresql() -> None:
    """Triggers, for the owner and superusers too; and partitions, whose default takes what has none of its own."""
    op.execute(
        """
        CREATE FUNCTION penstock_refuse() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
        BEGIN
            RAISE EXCEPTION '% is written once: no %', TG_ARGV[0], lower(TG_OP)
                USING ERRCODE = 'integrity_constraint_violation';
        END $$
        """
    )
    op.execute("CREATE TABLE ledger_default PARTITION OF ledger DEFAULT")
    for table in ("ledger", "audit_log"):
        op.execute(
            f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE ON {table} "  # a partition inherits it
            f"FOR EACH ROW EXECUTE FUNCTION penstock_refuse('{table}')"
        )
    for table, named in (("ledger", "ledger"), ("ledger_default", "ledger"), ("audit_log", "audit_log")):
        op.execute(
            f"CREATE TRIGGER {named}_no_truncate BEFORE TRUNCATE ON {table} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION penstock_refuse('{named}')"
        )
    op.execute(
        """
        CREATE FUNCTION penstock_partition(wanted bigint) RETURNS boolean
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
        DECLARE
            name text := format('public.ledger_%s', wanted);
        BEGIN
            PERFORM pg_advisory_xact_lock(hashtext('penstock_partition'));
            IF to_regclass(name) IS NOT NULL THEN
                RETURN false;
            END IF;
            EXECUTE format('CREATE TABLE %s PARTITION OF public.ledger FOR VALUES IN (%s)', name, wanted);
            EXECUTE format('CREATE TRIGGER ledger_no_truncate BEFORE TRUNCATE ON %s FOR EACH STATEMENT '
                           'EXECUTE FUNCTION public.penstock_refuse(''ledger'')', name);
            RETURN true;
        END $$
        """
    )
    op.execute("REVOKE ALL ON FUNCTION penstock_partition(bigint) FROM PUBLIC")


def _numbers(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in names]


def _texts(*names: str) -> list[sa.Column[str]]:
    text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")  # in the order of bytes, as SQLite and we sort
    return [sa.Column(name, text, nullable=False) for name in names]


def _ledger() -> None:
    op.create_table(
        "ledger",
        *_numbers("month"),
        *_texts("reservation", "kind", "organisation"),
        sa.Column("team", sa.Text),
        *_texts("key", "model", "lane"),
        *_numbers("occurred_at_ms", "prompt_tokens", "cached_tokens", "completion_tokens"),
        *_texts("usage_source"),
        *_numbers("tokens", "requests", "cost_nanos"),
        sa.Column("amounts", sa.JSON, nullable=False),
        *_numbers("tokens_held", "prompt_picos", "cached_picos", "completion_picos", "request_picos"),
        *_numbers("job_deadline_ms"),
        *_texts("reason"),
        sa.PrimaryKeyConstraint("month", "reservation", "kind", name="pk_ledger"),
        postgresql_partition_by="LIST (month)",
    )
    for column in ("occurred_at_ms", "job_deadline_ms"):
        op.create_index(f"ix_ledger_organisation_{column}", "ledger", ["organisation", column])


def _state() -> None:
    op.create_table(
        "reservations",
        *_texts("reservation", "organisation"),
        sa.Column("record", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("reservation", name="pk_reservations"),
    )
    op.create_table(
        "bucket_states",
        *_texts("organisation", "limit_id"),
        *_numbers("level", "at_ms"),
        sa.PrimaryKeyConstraint("organisation", "limit_id", name="pk_bucket_states"),
    )
    op.create_table(
        "epochs",
        *_texts("organisation"),
        *_numbers("epoch"),
        sa.PrimaryKeyConstraint("organisation", name="pk_epochs"),
    )


def _keys() -> None:
    op.create_table(
        "api_keys",
        *_texts("organisation", "id", "name"),
        sa.Column("team", sa.Text),
        sa.Column("macs", sa.JSON, nullable=False),
        sa.Column("models", sa.JSON),
        sa.Column("routes", sa.JSON),
        sa.Column("cost_nanos_max", sa.BigInteger),
        *_numbers("created_at_ms", "expires_at_ms", "rotated_at_ms", "revoked_at_ms"),
        sa.PrimaryKeyConstraint("organisation", "id", name="pk_api_keys"),
    )
    op.create_table(
        "versions",
        *_texts("name"),
        *_numbers("version"),
        sa.PrimaryKeyConstraint("name", name="pk_versions"),
    )


def _audit_log() -> None:
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "audit_log",
        sa.Column("id", number, autoincrement=True, nullable=False),
        *_numbers("at_ms"),
        *_texts("actor", "action"),
        sa.Column("organisation", sa.Text),
        *_texts("subject"),
        sa.Column("before", sa.JSON),
        sa.Column("after", sa.JSON),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
    )
    op.create_index("ix_audit_log_organisation_at_ms", "audit_log", ["organisation", "at_ms"])
