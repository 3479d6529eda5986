"""Events in an order that no late commit can slip into, who has read how far, and replays."""

from alembic import context, op

from migrations.tenancy import Tenancy, drop

revision = "e0006"
down_revision = "e0005"

KEEP = "SELECT, INSERT, UPDATE"

TENANT: dict[str, tuple[str, str]] = {
    # How far a group of consumers has acknowledged, and which of its members reads now.
    "executor.consumer_groups": (
        KEEP,
        """
        CREATE TABLE executor.consumer_groups (
            tenant_id uuid NOT NULL REFERENCES executor.tenants,
            name text NOT NULL,
            xid xid8 NOT NULL,
            event_id uuid NOT NULL,
            claim_id uuid,
            lease_until timestamptz,
            used_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (tenant_id, name),
            CHECK ((claim_id IS NULL) = (lease_until IS NULL))
        )""",
    ),
    # How far a replay has come: it goes on from here, whoever was cut short.
    "executor.replays": (
        KEEP,
        """
        CREATE TABLE executor.replays (
            tenant_id uuid NOT NULL REFERENCES executor.tenants,
            replay_id uuid NOT NULL,
            request_hash bytea NOT NULL,
            after_id uuid NOT NULL,
            until_id uuid NOT NULL,
            events bigint NOT NULL DEFAULT 0,
            deliveries bigint NOT NULL DEFAULT 0,
            executions bigint NOT NULL DEFAULT 0,
            unreadable bigint NOT NULL DEFAULT 0,
            updated_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (tenant_id, replay_id)
        )""",
    ),
}
CHANGES = (
    # A constant writes no row anew: what is there already comes first, in the order of its ids.
    "ALTER TABLE executor.events ADD COLUMN xid xid8 NOT NULL DEFAULT '0'",
    "ALTER TABLE executor.events ALTER COLUMN xid SET DEFAULT pg_current_xact_id()",
    "CREATE INDEX events_position ON executor.events (tenant_id, xid, id)",
    # What `webhook-id` is made from where that is another delivery's, of the same event.
    "ALTER TABLE executor.deliveries ADD COLUMN message_id uuid",
    "CREATE INDEX consumer_groups_age ON executor.consumer_groups (used_at)",
    "CREATE INDEX replays_age ON executor.replays (updated_at)",
)
BACK = (
    "ALTER TABLE executor.deliveries DROP COLUMN message_id",
    "DROP INDEX executor.events_position",
    "ALTER TABLE executor.events DROP COLUMN xid",
)


def upgrade() -> None:
    """Make the tables, and give events their positions."""
    Tenancy("executor", context.config.attributes["roles"]).make({}, TENANT)
    for statement in CHANGES:
        op.execute(statement)


def downgrade() -> None:
    """Take them away; who has read how far is forgotten."""
    for statement in BACK:
        op.execute(statement)
    drop(TENANT)
