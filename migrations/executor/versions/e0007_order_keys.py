"""A delivery knows with what it keeps its order, also when it is delivered again."""

from alembic import op

revision = "e0007"
down_revision = "e0006"


def upgrade() -> None:
    """Add the column; a constant default writes no row anew."""
    op.execute("ALTER TABLE executor.deliveries ADD COLUMN order_key text NOT NULL DEFAULT ''")


def downgrade() -> None:
    """Take the column away again; what is delivered again goes in order among its like."""
    op.execute("ALTER TABLE executor.deliveries DROP COLUMN order_key")
