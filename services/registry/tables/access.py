"""Who may call and do what."""

from sqlalchemy import BigInteger, Boolean, Column, LargeBinary, SmallInteger, Table, Text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from services.registry.tables.columns import id_, metadata, moment, text, wanted

principals = Table(
    "principals",
    metadata,
    id_("principal_id", key=True),
    text("kind"),
    text("issuer"),
    text("subject"),
    text("display_name"),
    text("email"),
    moment("disabled_at", nullable=True),
    moment("created_at"),
)

roles = Table(
    "roles",
    metadata,
    Column("role", Text, primary_key=True),
    Column("level", SmallInteger, nullable=False),
    Column("needs_reason", Boolean, nullable=False),
    text("description"),
)

permissions = Table(
    "permissions", metadata, Column("permission", Text, primary_key=True), text("description")
)

role_permissions = Table(
    "role_permissions",
    metadata,
    Column("role", Text, primary_key=True),
    Column("permission", Text, primary_key=True),
)

platform_grants = Table(
    "platform_grants",
    metadata,
    id_("principal_id", key=True),
    Column("role", Text, primary_key=True),
    Column("kinds", ARRAY(Text), nullable=False),
    Column("sources", ARRAY(Text), nullable=False),
    text("created_by"),
    moment("created_at"),
)

tenant_roles = wanted(
    "tenant_roles",
    "role_id",
    text("description"),
    Column("permissions", ARRAY(Text), nullable=False),
)

role_bindings = wanted(
    "role_bindings",
    "binding_id",
    text("role"),
    text("principal_kind"),
    text("issuer"),
    text("subject"),
    Column("kinds", ARRAY(Text), nullable=False),
    Column("sources", ARRAY(Text), nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", Text, primary_key=True),
    id_("principal_id"),
    text("name"),
    Column("digest", LargeBinary, nullable=False),
    Column("scopes", ARRAY(Text), nullable=False),
    Column("address_ranges", ARRAY(Text), nullable=False),
    text("environment"),
    text("last4"),
    Column("metadata", JSONB, nullable=False),
    text("created_by"),
    id_("created_by_id"),
    moment("expires_at", nullable=True),
    moment("revoked_at", nullable=True),
    text("revoked_by"),
    text("revoke_reason"),
    moment("last_used_at", nullable=True),
    moment("created_at"),
)

staff = Table(
    "staff",
    metadata,
    id_("principal_id", key=True),
    text("role"),
    Column("permissions", JSONB, nullable=False),
    text("created_by"),
    moment("created_at"),
    moment("updated_at"),
)

tenant_principals = Table(
    "tenant_principals",
    metadata,
    id_("tenant_id", key=True),
    id_("principal_id", key=True),
    moment("created_at"),
)

tenant_switches = Table(
    "tenant_switches",
    metadata,
    id_("tenant_id", key=True),
    id_("principal_id", key=True),
    moment("switched_at"),
)

api_key_usage = Table(
    "api_key_usage",
    metadata,
    id_("id", key=True),
    text("key_id"),
    text("method"),
    text("address"),
    text("user_agent"),
    Column("count", BigInteger, nullable=False),
    moment("bucket_at"),
)
