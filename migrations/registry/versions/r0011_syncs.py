"""Streams that integrations have transferred, and subscriptions to which that is the target."""

from migrations.registry.permissions import give, take
from migrations.tenancy import seeing

revision = "r0011"
down_revision = "r0010"

# As the contract says them where nobody has said anything.
NO_STREAMS = '{"streams": []}'
NO_TARGET = '{"integration": "", "stream": ""}'
ACTS = "nullif(action ->> 'integration', '')"
SYNCS = "nullif(sync ->> 'integration', '')"
ONE_TARGET = "subscriptions_one_target_check"
WIDEN = (
    f"ALTER TABLE registry.integrations ADD sync jsonb NOT NULL DEFAULT '{NO_STREAMS}'",
    f"""ALTER TABLE registry.subscriptions
        ADD sync jsonb NOT NULL DEFAULT '{NO_TARGET}',
        DROP CONSTRAINT {ONE_TARGET},
        ADD CONSTRAINT {ONE_TARGET}
            CHECK (num_nonnulls(connector_id, target_id, {ACTS}, {SYNCS}) = 1)""",
)
NARROW = (
    f"DELETE FROM registry.subscriptions WHERE {SYNCS} IS NOT NULL",
    f"""ALTER TABLE registry.subscriptions
        DROP CONSTRAINT {ONE_TARGET},
        DROP COLUMN sync,
        ADD CONSTRAINT {ONE_TARGET} CHECK (num_nonnulls(connector_id, target_id, {ACTS}) = 1)""",
    "ALTER TABLE registry.integrations DROP COLUMN sync",
)
SEEN = ("registry.subscriptions", "registry.integrations")

PERMISSIONS = {
    "syncs.read": "See the streams of integrations and their transfers",
    "syncs.run": "Transfer a stream, end a transfer, or have all of a stream brought anew",
    "records.read": "Read what streams have brought, in full",
}
READ = ("syncs.read",)
MANAGE = (*READ, "syncs.run", "records.read")
GRANTED = {
    "VIEWER": READ,
    "MANAGER": MANAGE,
    "ADMIN": MANAGE,
    "SUPER_ADMIN": MANAGE,
    "STAFF_OWNER": MANAGE,
}


def upgrade() -> None:
    """Say of every row that it has none, and give out the permissions."""
    seeing(SEEN, WIDEN)
    give(PERMISSIONS, GRANTED)


def downgrade() -> None:
    """Take it all away, with what routes to syncs."""
    take(PERMISSIONS)
    seeing(SEEN, NARROW)
