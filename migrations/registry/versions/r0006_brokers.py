"""Endpoints that are brokers: the subject that events are published to."""

from alembic import op

revision = "r0006"
down_revision = "r0005"


def upgrade() -> None:
    """Every endpoint there is has none."""
    op.execute("ALTER TABLE registry.webhook_endpoints ADD subject text NOT NULL DEFAULT ''")


def downgrade() -> None:
    """Brokers go, and what is routed to them."""
    tables = ("registry.webhook_endpoints", "registry.subscriptions")
    for table in tables:
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
    brokers = "SELECT endpoint_id FROM registry.webhook_endpoints WHERE subject <> ''"
    op.execute(f"DELETE FROM registry.subscriptions WHERE target_id IN ({brokers})")
    op.execute("DELETE FROM registry.webhook_endpoints WHERE subject <> ''")
    op.execute("ALTER TABLE registry.webhook_endpoints DROP COLUMN subject")
    for table in tables:
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
