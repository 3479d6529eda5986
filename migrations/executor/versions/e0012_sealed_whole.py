"""An event's headers and body may be sealed as one: there are no sealed headers then."""

from alembic import op

revision = "e0012"
down_revision = "e0011"

# Every row that was right before is right now, so nobody need look at them.
LOOSE = """
    ALTER TABLE executor.events
        DROP CONSTRAINT events_sealed,
        ADD CONSTRAINT events_sealed CHECK (
            (data_key_id IS NOT NULL OR sealed_headers IS NULL)
            AND (data_key_id IS NULL OR headers = '{}')
        ) NOT VALID"""
STRICT = """
    ALTER TABLE executor.events
        DROP CONSTRAINT events_sealed,
        ADD CONSTRAINT events_sealed CHECK (
            (data_key_id IS NULL) = (sealed_headers IS NULL)
            AND (data_key_id IS NULL OR headers = '{}')
        ) NOT VALID"""


def upgrade() -> None:
    """Let sealed headers be absent."""
    op.execute(LOOSE)


def downgrade() -> None:
    """Ask for them of all that comes; what was sealed as one meanwhile does not open any more."""
    op.execute(STRICT)
