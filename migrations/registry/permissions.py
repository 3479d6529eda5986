"""Permissions as revisions give them out to built-in roles, and take them away again."""

from collections.abc import Iterable, Mapping, Sequence

from alembic import op


def give(permissions: Mapping[str, str], granted: Mapping[str, Sequence[str]]) -> None:
    """Make permissions, each with what it lets do, and say which role has which."""
    for permission, description in permissions.items():
        op.execute(f"INSERT INTO registry.permissions VALUES ('{permission}', $${description}$$)")
    for role, held in granted.items():
        for permission in held:
            op.execute(f"INSERT INTO registry.role_permissions VALUES ('{role}', '{permission}')")


def take(permissions: Iterable[str]) -> None:
    """Take permissions from every role, and away."""
    names = ", ".join(f"'{permission}'" for permission in permissions)
    op.execute(f"DELETE FROM registry.role_permissions WHERE permission IN ({names})")
    op.execute(f"DELETE FROM registry.permissions WHERE permission IN ({names})")
