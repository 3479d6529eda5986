"""A group of consumers knows how often it was reset, and so do the positions its members keep."""

from alembic import op

revision = "e0009"
down_revision = "e0008"


def upgrade() -> None:
    """Add the column; a constant default writes no row anew."""
    op.execute(
        "ALTER TABLE executor.consumer_groups ADD COLUMN generation bigint NOT NULL DEFAULT 0"
    )


def downgrade() -> None:
    """Take the column away again; positions that name a generation are refused then."""
    op.execute("ALTER TABLE executor.consumer_groups DROP COLUMN generation")
