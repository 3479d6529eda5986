"""Endpoints that are brokers: the subject that events are published to."""

from alembic import op

from migrations.tenancy import seeing

revision = "r0006"
down_revision = "r0005"


def upgrade() -> None:
    """Every endpoint there is has none."""
    op.execute("ALTER TABLE registry.webhook_endpoints ADD subject text NOT NULL DEFAULT ''")


def downgrade() -> None:
    """Brokers go, and what is routed to them."""
    brokers = "SELECT endpoint_id FROM registry.webhook_endpoints WHERE subject <> ''"
    seeing(
        ("registry.webhook_endpoints", "registry.subscriptions"),
        (
            f"DELETE FROM registry.subscriptions WHERE target_id IN ({brokers})",
            "DELETE FROM registry.webhook_endpoints WHERE subject <> ''",
            "ALTER TABLE registry.webhook_endpoints DROP COLUMN subject",
        ),
    )
