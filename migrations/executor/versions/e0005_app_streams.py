"""Streams of apps: whose each is, and of which accounts tenants want to hear."""

from alembic import context, op

from migrations.tenancy import Tenancy, drop

revision = "e0005"
down_revision = "e0004"

REPLACE = "SELECT, INSERT, DELETE"

TENANT: dict[str, tuple[str, str]] = {
    "executor.app_streams": (
        REPLACE,
        """
        CREATE TABLE executor.app_streams (
            tenant_id uuid NOT NULL REFERENCES executor.tenants,
            endpoint_id uuid NOT NULL,
            provider text NOT NULL,
            app text NOT NULL,
            endpoint text NOT NULL,
            PRIMARY KEY (tenant_id, endpoint_id)
        )""",
    ),
    "executor.app_accounts": (
        REPLACE,
        """
        CREATE TABLE executor.app_accounts (
            tenant_id uuid NOT NULL REFERENCES executor.tenants,
            endpoint_id uuid NOT NULL,
            provider text NOT NULL,
            app text NOT NULL,
            account text NOT NULL,
            endpoint text NOT NULL,
            active boolean NOT NULL,
            PRIMARY KEY (tenant_id, endpoint_id, account)
        )""",
    ),
}
# Not unique: the registry sees to that, and what is projected of two tenants is not of one moment.
INDEXES = (
    "CREATE INDEX app_streams_name ON executor.app_streams (provider, app)",
    "CREATE INDEX app_accounts_account ON executor.app_accounts (provider, app, account)",
)


def upgrade() -> None:
    """Make both; the next projection of each tenant fills them."""
    Tenancy("executor", context.config.attributes["roles"]).make({}, TENANT)
    for statement in INDEXES:
        op.execute(statement)


def downgrade() -> None:
    """Take them away."""
    drop(TENANT)
