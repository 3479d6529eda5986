"""Events that services publish, and events on their way to endpoints: deliveries and attempts."""

from alembic import context, op

from migrations import partitions
from migrations.executor.versions import e0001_happened as first
from migrations.tenancy import Tenancy, drop

revision = "e0003"
down_revision = "e0002"

TIME_TABLES = ("deliveries", "delivery_attempts")
KEEP = "SELECT, INSERT, UPDATE"
APPEND = "SELECT, INSERT"
STATES = "'queued', 'sending', 'success', 'failed', 'retrying', 'dead'"

TENANT: dict[str, tuple[str, str]] = {
    "executor.deliveries": (
        KEEP,
        f"""
        CREATE TABLE executor.deliveries (
            tenant_id uuid NOT NULL,
            id uuid NOT NULL,
            event_id uuid NOT NULL,
            event_type text NOT NULL,
            endpoint_id uuid NOT NULL,
            endpoint text NOT NULL,
            subscription text NOT NULL,
            state text NOT NULL CHECK (state IN ({STATES})),
            attempts integer NOT NULL DEFAULT 0,
            response_status integer NOT NULL DEFAULT 0,
            failure_reason text NOT NULL DEFAULT '',
            payload_hash bytea NOT NULL,
            -- What is delivered where that is not the event's own body, sealed.
            data_key_id uuid,
            sealed_body bytea,
            created_at timestamptz NOT NULL DEFAULT now(),
            ended_at timestamptz,
            PRIMARY KEY (tenant_id, id),
            CHECK ((data_key_id IS NULL) = (sealed_body IS NULL))
        ) PARTITION BY RANGE (id)""",
    ),
    "executor.delivery_attempts": (
        APPEND,
        """
        CREATE TABLE executor.delivery_attempts (
            tenant_id uuid NOT NULL,
            delivery_id uuid NOT NULL,
            number integer NOT NULL,
            started_at timestamptz NOT NULL,
            duration_ms integer NOT NULL,
            response_status integer NOT NULL,
            failure_reason text NOT NULL,
            response_head text NOT NULL,
            PRIMARY KEY (tenant_id, delivery_id, number)
        ) PARTITION BY RANGE (delivery_id)""",
    ),
}
INDEXES = (
    "CREATE INDEX deliveries_endpoint ON executor.deliveries (tenant_id, endpoint, id)",
    "CREATE INDEX deliveries_event ON executor.deliveries (tenant_id, event_id)",
    "CREATE INDEX executions_trigger ON executor.executions (tenant_id, trigger_id)",
    "CREATE INDEX events_type ON executor.events (tenant_id, type, id)",
)


def upgrade() -> None:
    """Make the tables and their first months."""
    tenancy = Tenancy("executor", context.config.attributes["roles"])
    tenancy.make({}, TENANT)
    for statement in INDEXES:
        op.execute(statement)
    tenancy.by_month("executor", (*first.TIME_TABLES, *TIME_TABLES))


def downgrade() -> None:
    """Take them away; the time tables are again those there were."""
    drop(TENANT)
    for index in ("executions_trigger", "events_type"):
        op.execute(f"DROP INDEX executor.{index}")
    roles = context.config.attributes["roles"]
    partitions.make("executor", first.TIME_TABLES, roles.system("executor"))
