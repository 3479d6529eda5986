"""Accounts are claimed of the stream of one owner."""

from alembic import op

revision = "e0008"
down_revision = "e0007"


def upgrade() -> None:
    """Add the column; a constant default writes no row anew. Such rows are nobody's claims."""
    op.execute("ALTER TABLE executor.app_accounts ADD COLUMN app_owner text NOT NULL DEFAULT ''")


def downgrade() -> None:
    """Take the column away again; who claims hears of whoever owns the stream."""
    op.execute("ALTER TABLE executor.app_accounts DROP COLUMN app_owner")
