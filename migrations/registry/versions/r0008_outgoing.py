"""Signing keys with a public half, endpoints that see a certificate, and what is never shown."""

from migrations.tenancy import seeing

revision = "r0008"
down_revision = "r0007"

AUTHS = "'SIGNATURE', 'NONE', 'BEARER', 'API_KEY', 'BASIC', 'CUSTOM', 'OAUTH2'"
WIDEN = (
    """ALTER TABLE registry.credentials
        ADD COLUMN generate text NOT NULL DEFAULT ''
            CHECK (generate IN ('', 'hmac', 'ed25519'))""",
    # What receivers check signatures with; it is no secret.
    "ALTER TABLE registry.credential_versions ADD COLUMN public_key text NOT NULL DEFAULT ''",
    f"""ALTER TABLE registry.webhook_endpoints
        DROP CONSTRAINT webhook_endpoints_auth_check,
        ADD CONSTRAINT webhook_endpoints_auth_check CHECK (auth IN ({AUTHS}, 'MTLS')),
        ADD COLUMN redact text[] NOT NULL DEFAULT '{{}}'""",
)
NARROW = (
    """DELETE FROM registry.subscriptions USING registry.webhook_endpoints AS target
        WHERE subscriptions.tenant_id = target.tenant_id AND target_id = target.endpoint_id
        AND auth = 'MTLS'""",
    "DELETE FROM registry.webhook_endpoints WHERE auth = 'MTLS'",
    f"""ALTER TABLE registry.webhook_endpoints
        DROP COLUMN redact,
        DROP CONSTRAINT webhook_endpoints_auth_check,
        ADD CONSTRAINT webhook_endpoints_auth_check CHECK (auth IN ({AUTHS}))""",
    "ALTER TABLE registry.credential_versions DROP COLUMN public_key",
    "ALTER TABLE registry.credentials DROP COLUMN generate",
)
SEEN = tuple(
    f"registry.{table}"
    for table in ("credentials", "credential_versions", "webhook_endpoints", "subscriptions")
)


def upgrade() -> None:
    """Add the columns; constant defaults write no row anew."""
    seeing(SEEN, WIDEN)


def downgrade() -> None:
    """Take them away again, and the endpoints that nothing else would let in."""
    seeing(SEEN, NARROW)
