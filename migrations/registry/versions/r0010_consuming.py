"""Whoever reads events as a member of a group, and acknowledges them for it, may do that."""

from alembic import op

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
    for permission, description in PERMISSIONS.items():
        op.execute(f"INSERT INTO registry.permissions VALUES ('{permission}', $${description}$$)")
    for role, permissions in GRANTED.items():
        for permission in permissions:
            op.execute(f"INSERT INTO registry.role_permissions VALUES ('{role}', '{permission}')")


def downgrade() -> None:
    """Take it away."""
    names = ", ".join(f"'{permission}'" for permission in PERMISSIONS)
    op.execute(f"DELETE FROM registry.role_permissions WHERE permission IN ({names})")
    op.execute(f"DELETE FROM registry.permissions WHERE permission IN ({names})")
