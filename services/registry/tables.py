"""The tables of the schema `registry`, as statements see them; migrations make them."""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Identity,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID
from sqlalchemy.types import UserDefinedType

metadata = MetaData(schema="registry")


class Xid8(UserDefinedType[int]):
    """PostgreSQL's 64-bit transaction id."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """The type's name in SQL."""
        return "xid8"


def _moment(name: str, *, nullable: bool = False) -> Column[Any]:
    return Column(name, DateTime(timezone=True), nullable=nullable)


def _text(name: str) -> Column[Any]:
    return Column(name, Text, nullable=False)


def _id(name: str, *, key: bool = False, nullable: bool = False) -> Column[Any]:
    return Column(name, UUID(as_uuid=True), primary_key=key, nullable=nullable)


def _wanted(name: str, id_column: str, *columns: Column[Any]) -> Table:
    """A table of wanted objects: what all kinds have, then the kind's own."""
    return Table(
        name,
        metadata,
        _id("tenant_id", key=True),
        _id(id_column, key=True),
        _text("name"),
        Column("labels", JSONB, nullable=False),
        Column("annotations", JSONB, nullable=False),
        Column("revision", BigInteger, nullable=False),
        _moment("created_at"),
        _moment("updated_at"),
        *columns,
    )


deployment = Table(
    "deployment",
    metadata,
    Column("singleton", Boolean, primary_key=True),
    _id("incarnation"),
    _moment("created_at"),
)

principals = Table(
    "principals",
    metadata,
    _id("principal_id", key=True),
    _text("kind"),
    _text("issuer"),
    _text("subject"),
    _text("display_name"),
    _text("email"),
    _moment("disabled_at", nullable=True),
    _moment("created_at"),
)

roles = Table(
    "roles",
    metadata,
    Column("role", Text, primary_key=True),
    Column("level", SmallInteger, nullable=False),
    Column("needs_reason", Boolean, nullable=False),
    _text("description"),
)

permissions = Table(
    "permissions", metadata, Column("permission", Text, primary_key=True), _text("description")
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
    _id("principal_id", key=True),
    Column("role", Text, primary_key=True),
    Column("kinds", ARRAY(Text), nullable=False),
    Column("sources", ARRAY(Text), nullable=False),
    _text("created_by"),
    _moment("created_at"),
)

tenant_roles = _wanted(
    "tenant_roles",
    "role_id",
    _text("description"),
    Column("permissions", ARRAY(Text), nullable=False),
)

role_bindings = _wanted(
    "role_bindings",
    "binding_id",
    _text("role"),
    _text("principal_kind"),
    _text("issuer"),
    _text("subject"),
    Column("kinds", ARRAY(Text), nullable=False),
    Column("sources", ARRAY(Text), nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", Text, primary_key=True),
    _id("principal_id"),
    _text("name"),
    Column("digest", LargeBinary, nullable=False),
    Column("scopes", ARRAY(Text), nullable=False),
    Column("address_ranges", ARRAY(Text), nullable=False),
    _text("last4"),
    Column("metadata", JSONB, nullable=False),
    _text("created_by"),
    _moment("expires_at", nullable=True),
    _moment("revoked_at", nullable=True),
    _text("revoked_by"),
    _text("revoke_reason"),
    _moment("last_used_at", nullable=True),
    _moment("created_at"),
)

key_versions = Table(
    "key_versions",
    metadata,
    Column("version", Integer, primary_key=True),
    Column("proof", LargeBinary, nullable=False),
    _moment("created_at"),
)

tenants = Table(
    "tenants",
    metadata,
    _id("tenant_id", key=True),
    _text("slug"),
    _text("display_name"),
    _text("state"),
    Column("enabled", Boolean, nullable=False),
    Column("limits", JSONB, nullable=False),
    Column("labels", JSONB, nullable=False),
    Column("annotations", JSONB, nullable=False),
    Column("revision", BigInteger, nullable=False),
    _moment("created_at"),
    _moment("updated_at"),
)

tenant_status = Table(
    "tenant_status",
    metadata,
    _id("tenant_id", key=True),
    Column("projected_revision", BigInteger, nullable=False),
    _moment("reported_at"),
)

data_keys = Table(
    "data_keys",
    metadata,
    _id("tenant_id", key=True),
    _id("data_key_id", key=True),
    Column("key_version", Integer, nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    _moment("created_at"),
)

credentials = _wanted(
    "credentials",
    "credential_id",
    _text("type"),
    _text("description"),
    Column("version", Integer, nullable=False),
)

credential_versions = Table(
    "credential_versions",
    metadata,
    _id("tenant_id", key=True),
    _id("credential_id", key=True),
    Column("version", Integer, primary_key=True),
    _id("version_id"),
    _id("data_key_id"),
    Column("wrapped_key", LargeBinary, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("fingerprints", JSONB, nullable=False),
    _moment("created_at"),
)

integrations = _wanted(
    "integrations",
    "integration_id",
    _text("display_name"),
    _text("provider"),
    _text("category"),
    _text("environment"),
    _text("base_url"),
    Column("is_primary", Boolean, nullable=False),
    Column("is_active", Boolean, nullable=False),
    Column("config", JSONB, nullable=False),
    _id("credential_id", nullable=True),
)

connectors = _wanted(
    "connectors",
    "connector_id",
    _text("display_name"),
    _text("description"),
    Column("is_active", Boolean, nullable=False),
    Column("steps", JSONB, nullable=False),
    Column("lane", JSONB, nullable=False),
    Column("schedule", JSONB, nullable=False),
    Column("timeout", Text),
    Column("max_retries", Integer, nullable=False),
    Column("output", JSONB, nullable=False),
)

webhook_endpoints = _wanted(
    "webhook_endpoints",
    "endpoint_id",
    _text("direction"),
    Column("is_active", Boolean, nullable=False),
    _id("integration_id"),
    _id("secret_id"),
)

subscriptions = _wanted(
    "subscriptions",
    "subscription_id",
    Column("is_active", Boolean, nullable=False),
    _id("endpoint_id"),
    _id("connector_id"),
    Column("event_types", ARRAY(Text), nullable=False),
    _text("filter"),
)

config_ownership = Table(
    "config_ownership",
    metadata,
    _id("tenant_id", key=True),
    Column("kind", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("source", Text, primary_key=True),
    Column("fields", ARRAY(Text), nullable=False),
)

config_revisions = Table(
    "config_revisions",
    metadata,
    _id("tenant_id", key=True),
    Column("revision", BigInteger, primary_key=True),
    _text("source"),
    _text("principal_name"),
    _text("plan_hash"),
    _text("commit"),
    Column("created", Integer, nullable=False),
    Column("updated", Integer, nullable=False),
    _moment("created_at"),
)

request_answers = Table(
    "request_answers",
    metadata,
    _id("tenant_id", key=True),
    _id("principal_id", key=True),
    Column("method", Text, primary_key=True),
    _id("request_id", key=True),
    Column("request_hash", LargeBinary, nullable=False),
    Column("answer", LargeBinary, nullable=False),
    _moment("created_at"),
)

feed = Table(
    "feed",
    metadata,
    _id("tenant_id", key=True),
    Column("seq", BigInteger, Identity(always=True), primary_key=True),
    Column("xid", Xid8, nullable=False),
    _text("kind"),
    Column("revision", BigInteger, nullable=False),
    _moment("created_at"),
)

audit_events = Table(
    "audit_events",
    metadata,
    _id("tenant_id", key=True),
    _id("id", key=True),
    _moment("created_at"),
    _id("actor_id"),
    _text("actor_kind"),
    _text("actor_name"),
    _text("actor_role"),
    _text("address"),
    _text("user_agent"),
    _text("action"),
    _text("kind"),
    _text("object"),
    _id("object_id"),
    Column("fields", JSONB, nullable=False),
    Column("risk", SmallInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    _text("request_id"),
    _text("source"),
    _text("commit"),
    _text("file"),
    Column("line", Integer, nullable=False),
)
