"""Endpoints that events are delivered to, and subscriptions that route to them."""

from alembic import op

from migrations.registry.permissions import give, take
from migrations.tenancy import seeing

revision = "r0003"
down_revision = "r0002"

PERMISSIONS = {
    "events.publish": "Publish events, and send an endpoint a test",
    "events.read": "See events with what they say, and what became of them",
    "deliveries.read": "See deliveries and their attempts",
    "deliveries.retry": "Deliver again what has ended",
}
READ = ("deliveries.read",)
# What came in is not masked, unlike all that a VIEWER sees of it.
MANAGE = (*READ, "events.read", "events.publish", "deliveries.retry")
GRANTED = {
    "VIEWER": READ,
    "MANAGER": MANAGE,
    "ADMIN": MANAGE,
    "SUPER_ADMIN": MANAGE,
    "STAFF_OWNER": MANAGE,
}
DESCRIPTIONS = {
    "VIEWER": (
        "Reads everything of a tenant but its audit log",
        "Reads everything of a tenant but its audit log and its events",
    ),
}

WIDENED = ("registry.webhook_endpoints", "registry.subscriptions")
AUTHS = "'SIGNATURE', 'NONE', 'BEARER', 'API_KEY', 'BASIC', 'CUSTOM', 'OAUTH2'"
WIDEN = (
    f"""ALTER TABLE registry.webhook_endpoints
        DROP CONSTRAINT webhook_endpoints_direction_check,
        ADD CONSTRAINT webhook_endpoints_direction_check
            CHECK (direction IN ('INBOUND', 'OUTBOUND')),
        ALTER integration_id DROP NOT NULL,
        ALTER secret_id DROP NOT NULL,
        ADD auth text NOT NULL DEFAULT 'SIGNATURE' CHECK (auth IN ({AUTHS})),
        ADD credential_id uuid,
        ADD auth_header text NOT NULL DEFAULT '',
        ADD url text NOT NULL DEFAULT '',
        ADD headers jsonb NOT NULL DEFAULT '{{}}',
        ADD delivery jsonb NOT NULL DEFAULT '{{}}',
        ADD CONSTRAINT webhook_endpoints_credential_fkey
            FOREIGN KEY (tenant_id, credential_id) REFERENCES registry.credentials
            ON DELETE RESTRICT,
        ADD CONSTRAINT webhook_endpoints_way_check CHECK (
            CASE direction WHEN 'INBOUND' THEN integration_id IS NOT NULL AND url = ''
            ELSE integration_id IS NULL AND url <> '' END)""",
    """ALTER TABLE registry.subscriptions
        ALTER endpoint_id DROP NOT NULL,
        ALTER connector_id DROP NOT NULL,
        ADD target_id uuid,
        ADD transform jsonb NOT NULL DEFAULT 'null',
        ADD CONSTRAINT subscriptions_target_fkey
            FOREIGN KEY (tenant_id, target_id) REFERENCES registry.webhook_endpoints
            ON DELETE RESTRICT,
        ADD CONSTRAINT subscriptions_one_target_check
            CHECK (num_nonnulls(connector_id, target_id) = 1)""",
)
NARROW = (
    """DELETE FROM registry.subscriptions
        WHERE endpoint_id IS NULL OR connector_id IS NULL""",
    """ALTER TABLE registry.subscriptions
        DROP COLUMN target_id, DROP COLUMN transform,
        ALTER endpoint_id SET NOT NULL, ALTER connector_id SET NOT NULL""",
    """DELETE FROM registry.webhook_endpoints
        WHERE direction <> 'INBOUND' OR integration_id IS NULL OR secret_id IS NULL""",
    """ALTER TABLE registry.webhook_endpoints
        DROP CONSTRAINT webhook_endpoints_way_check,
        DROP CONSTRAINT webhook_endpoints_direction_check,
        ADD CONSTRAINT webhook_endpoints_direction_check CHECK (direction IN ('INBOUND')),
        ALTER integration_id SET NOT NULL, ALTER secret_id SET NOT NULL,
        DROP COLUMN auth, DROP COLUMN credential_id, DROP COLUMN auth_header, DROP COLUMN url,
        DROP COLUMN headers, DROP COLUMN delivery""",
)

SEEN = (*WIDENED, "registry.credentials")


def upgrade() -> None:
    """Widen both tables, whose new foreign keys find every row; give out the new permissions."""
    seeing(SEEN, WIDEN)
    give(PERMISSIONS, GRANTED)
    for role, (_, now) in DESCRIPTIONS.items():
        _describe(role, now)


def downgrade() -> None:
    """Take away what goes out, and all that was said of it."""
    for role, (before, _) in DESCRIPTIONS.items():
        _describe(role, before)
    take(PERMISSIONS)
    seeing(SEEN, NARROW)


def _describe(role: str, description: str) -> None:
    op.execute(f"UPDATE registry.roles SET description = $${description}$$ WHERE role = '{role}'")
