"""Types of events whose payloads have a schema; events may be replayed."""

from alembic import context

from migrations.registry.permissions import give, take
from migrations.tenancy import Tenancy, drop

revision = "r0007"
down_revision = "r0006"

PERMISSIONS = {"events.replay": "Route events again that came in before"}
MANAGE = ("events.replay",)
GRANTED = {
    "MANAGER": MANAGE,
    "ADMIN": MANAGE,
    "SUPER_ADMIN": MANAGE,
    "STAFF_OWNER": MANAGE,
}
TENANT: dict[str, tuple[str, str]] = {
    "registry.event_types": (
        "SELECT, INSERT, UPDATE, DELETE",
        """
        CREATE TABLE registry.event_types (
            tenant_id uuid NOT NULL REFERENCES registry.tenants,
            event_type_id uuid NOT NULL,
            name text NOT NULL,
            labels jsonb NOT NULL,
            annotations jsonb NOT NULL,
            revision bigint NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now(),
            type text NOT NULL,
            schema jsonb NOT NULL,
            is_active boolean NOT NULL,
            PRIMARY KEY (tenant_id, event_type_id),
            CONSTRAINT event_types_name_key UNIQUE (tenant_id, name)
        )""",
    ),
}


def upgrade() -> None:
    """Make the table, and give out the permission."""
    Tenancy("registry", context.config.attributes["roles"]).make({}, TENANT)
    give(PERMISSIONS, GRANTED)


def downgrade() -> None:
    """Take both away."""
    take(PERMISSIONS)
    drop(TENANT)
