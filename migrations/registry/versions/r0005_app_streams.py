"""Endpoints that own the stream of a provider's app, or receive from one."""

from migrations.tenancy import seeing

revision = "r0005"
down_revision = "r0004"

ENDPOINTS = "registry.webhook_endpoints"
SEEN = (ENDPOINTS, "registry.subscriptions")
WIDEN = (
    f"""ALTER TABLE {ENDPOINTS}
        ADD app text NOT NULL DEFAULT '',
        ADD tenants text[] NOT NULL DEFAULT '{{}}',
        -- Of the owner of a stream: whose app it is; of all others nothing.
        ADD app_provider text NOT NULL DEFAULT '',
        ADD CONSTRAINT webhook_endpoints_stream_check CHECK (
            app_provider = '' OR app <> '' AND secret_id IS NOT NULL)""",
    # One owner in all tenants. Looked at when all is written, so that two may change places.
    f"""ALTER TABLE {ENDPOINTS}
        ADD CONSTRAINT webhook_endpoints_app_key EXCLUDE USING btree
            (app_provider WITH =, app WITH =)
            WHERE (app_provider <> '') DEFERRABLE INITIALLY DEFERRED""",
)
NARROW = (
    f"""DELETE FROM registry.subscriptions AS s USING {ENDPOINTS} AS e
        WHERE e.tenant_id = s.tenant_id AND e.endpoint_id = s.endpoint_id AND e.app <> ''""",
    f"DELETE FROM {ENDPOINTS} WHERE app <> ''",
    f"""ALTER TABLE {ENDPOINTS}
        DROP COLUMN app, DROP COLUMN tenants, DROP COLUMN app_provider""",
)


def upgrade() -> None:
    """Widen endpoints; none that is there has to do with a stream."""
    seeing(SEEN, WIDEN)


def downgrade() -> None:
    """Take streams away with their endpoints, which the older services would take for others."""
    seeing(SEEN, NARROW)
