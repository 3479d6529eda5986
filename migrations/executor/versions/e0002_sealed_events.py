"""Headers and bodies of events may be sealed; what is there already stays in the clear."""

from alembic import op

revision = "e0002"
down_revision = "e0001"

WIDEN = """
    ALTER TABLE executor.events
        -- Which of the tenant's data keys `body` and `sealed_headers` are sealed with.
        ADD COLUMN data_key_id uuid,
        ADD COLUMN sealed_headers bytea,
        ADD CONSTRAINT events_sealed CHECK (
            (data_key_id IS NULL) = (sealed_headers IS NULL)
            AND (data_key_id IS NULL OR headers = '{}')
        )"""
NARROW = """
    ALTER TABLE executor.events
        DROP CONSTRAINT events_sealed,
        DROP COLUMN sealed_headers,
        DROP COLUMN data_key_id"""


def upgrade() -> None:
    """Add the columns; without a default no row is written anew."""
    op.execute(WIDEN)


def downgrade() -> None:
    """Take the columns away again; what was sealed cannot be read any more."""
    op.execute(NARROW)
