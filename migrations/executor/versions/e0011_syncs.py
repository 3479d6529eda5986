"""Streams that are transferred: how each stands, its transfers, and the records they bring."""

from alembic import context, op

from migrations import partitions
from migrations.executor.versions import e0001_happened as first
from migrations.executor.versions import e0003_deliveries as third
from migrations.tenancy import Tenancy, drop, hash_partitions

revision = "e0011"
down_revision = "e0010"

BEFORE = (*first.TIME_TABLES, *third.TIME_TABLES)
TIME_TABLES = ("sync_runs",)
RECORD_PARTITIONS = 16
KEEP = "SELECT, INSERT, UPDATE"
STATES = "'queued', 'running', 'retrying', 'success', 'failed', 'cancelled'"

TENANT: dict[str, tuple[str, str]] = {
    "executor.sync_states": (
        KEEP,
        """
        CREATE TABLE executor.sync_states (
            tenant_id uuid NOT NULL,
            stream_id uuid NOT NULL,
            -- Up to where what has changed is here; of which of the stream's beginnings.
            cursor text NOT NULL DEFAULT '',
            -- What its list is asked by: another one, another list.
            asked bytea NOT NULL DEFAULT '',
            beginning bigint NOT NULL DEFAULT 0,
            last_run_id uuid,
            -- By which its records' digests are made, sealed; and what all of them are sealed with.
            data_key_id uuid,
            sealed_digest_key bytea,
            sealed_by uuid,
            -- The newest transfers that ended well: which, and when they began.
            covered_by uuid,
            covered_at timestamptz,
            full_covered_by uuid,
            full_covered_at timestamptz,
            failures integer NOT NULL DEFAULT 0,
            last_success_at timestamptz,
            last_failure_at timestamptz,
            last_failure_reason text NOT NULL DEFAULT '',
            PRIMARY KEY (tenant_id, stream_id),
            CHECK ((data_key_id IS NULL) = (sealed_digest_key IS NULL))
        )""",
    ),
    "executor.sync_runs": (
        KEEP,
        f"""
        CREATE TABLE executor.sync_runs (
            tenant_id uuid NOT NULL,
            id uuid NOT NULL,
            stream_id uuid NOT NULL,
            stream text NOT NULL,
            state text NOT NULL CHECK (state IN ({STATES})),
            whole boolean NOT NULL,
            trigger_kind text NOT NULL CHECK (trigger_kind IN ('event', 'rpc', 'schedule')),
            trigger_id uuid NOT NULL,
            -- Where it stands, sealed, and of which of the stream's beginnings it is.
            data_key_id uuid,
            sealed_place bytea,
            beginning bigint NOT NULL DEFAULT 0,
            pages bigint NOT NULL DEFAULT 0,
            seen bigint NOT NULL DEFAULT 0,
            created bigint NOT NULL DEFAULT 0,
            updated bigint NOT NULL DEFAULT 0,
            deleted bigint NOT NULL DEFAULT 0,
            failure_reason text NOT NULL DEFAULT '',
            failure_message text NOT NULL DEFAULT '',
            covered_by uuid,
            created_at timestamptz NOT NULL DEFAULT now(),
            started_at timestamptz,
            ended_at timestamptz,
            PRIMARY KEY (tenant_id, id),
            CHECK ((data_key_id IS NULL) = (sealed_place IS NULL))
        ) PARTITION BY RANGE (id)""",
    ),
    "executor.records": (
        KEEP,
        """
        CREATE TABLE executor.records (
            tenant_id uuid NOT NULL,
            stream_id uuid NOT NULL,
            key text NOT NULL,
            -- Keyed by the stream's: tells whether it has changed, and nothing else.
            digest bytea NOT NULL,
            data_key_id uuid,
            sealed_data bytea,
            version bigint NOT NULL,
            seen_by uuid NOT NULL,
            changed_at timestamptz NOT NULL,
            deleted_at timestamptz,
            PRIMARY KEY (tenant_id, stream_id, key),
            CHECK ((deleted_at IS NULL) = (sealed_data IS NOT NULL)),
            CHECK ((data_key_id IS NULL) = (sealed_data IS NULL))
        ) PARTITION BY HASH (tenant_id)""",
    ),
}
INDEXES = (
    "CREATE INDEX sync_runs_stream ON executor.sync_runs (tenant_id, stream, id)",
    "CREATE INDEX sync_runs_trigger ON executor.sync_runs (tenant_id, trigger_id)",
)


def upgrade() -> None:
    """Make the tables and their first partitions; replays count what they transfer."""
    tenancy = Tenancy("executor", context.config.attributes["roles"])
    tenancy.make({}, TENANT)
    hash_partitions("executor.records", RECORD_PARTITIONS)
    for statement in INDEXES:
        op.execute(statement)
    op.execute("ALTER TABLE executor.replays ADD COLUMN sync_runs bigint NOT NULL DEFAULT 0")
    tenancy.by_month("executor", (*BEFORE, *TIME_TABLES))


def downgrade() -> None:
    """Take them away; the time tables are again those there were."""
    op.execute("ALTER TABLE executor.replays DROP COLUMN sync_runs")
    drop(TENANT)
    roles = context.config.attributes["roles"]
    partitions.make("executor", BEFORE, roles.system("executor"))
