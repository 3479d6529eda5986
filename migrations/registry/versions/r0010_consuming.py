"""Whoever reads events as a member of a group, and acknowledges them for it, may do that."""

from migrations.registry.permissions import give, take

revision = "r0010"
down_revision = "r0009"

PERMISSIONS = {"events.consume": "Read events as a member of a group, and say how far it is"}
MANAGE = ("events.consume",)
GRANTED = {
    "MANAGER": MANAGE,
    "ADMIN": MANAGE,
    "SUPER_ADMIN": MANAGE,
    "STAFF_OWNER": MANAGE,
}


def upgrade() -> None:
    """Give out the permission."""
    give(PERMISSIONS, GRANTED)


def downgrade() -> None:
    """Take it away."""
    take(PERMISSIONS)
