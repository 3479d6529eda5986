"""Connected accounts, and authorisations under way."""

from sqlalchemy import Boolean, Column, LargeBinary, Table, Text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from services.registry.tables.columns import id_, metadata, moment, text, wanted

connections = wanted(
    "connections",
    "connection_id",
    *map(id_, ("integration_id", "credential_id")),
    id_("venue_id", nullable=True),
    *map(text, ("user", "external_account_id")),
    Column("scopes", ARRAY(Text), nullable=False),
    Column("provider_metadata", JSONB, nullable=False),
    Column("is_active", Boolean, nullable=False),
    text("provider"),
    id_("app_id", nullable=True),
)

oauth_flows = Table(
    "oauth_flows",
    metadata,
    id_("tenant_id", key=True),
    id_("flow_id", key=True),
    *map(id_, ("integration_id", "principal_id")),
    Column("actor", JSONB, nullable=False),
    id_("link_id", nullable=True),
    Column("state_hash", LargeBinary, nullable=False),
    Column("browser_hash", LargeBinary),
    Column("wishes", JSONB, nullable=False),
    id_("data_key_id"),
    Column("wrapped_key", LargeBinary, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    *map(moment, ("created_at", "expires_at")),
    moment("used_at", nullable=True),
)

connect_links = Table(
    "connect_links",
    metadata,
    id_("tenant_id", key=True),
    id_("link_id", key=True),
    *map(id_, ("integration_id", "principal_id")),
    Column("actor", JSONB, nullable=False),
    Column("wishes", JSONB, nullable=False),
    *map(moment, ("created_at", "expires_at")),
    moment("used_at", nullable=True),
)
