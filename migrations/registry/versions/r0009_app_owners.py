"""Receivers of an app's stream say whose it is."""

from alembic import op

revision = "r0009"
down_revision = "r0008"


def upgrade() -> None:
    """Add the column; a constant default writes no row anew. Who says nothing receives nothing."""
    op.execute(
        "ALTER TABLE registry.webhook_endpoints ADD COLUMN app_owner text NOT NULL DEFAULT ''"
    )


def downgrade() -> None:
    """Take the column away again; receivers hear of whoever owns the stream."""
    op.execute("ALTER TABLE registry.webhook_endpoints DROP COLUMN app_owner")
