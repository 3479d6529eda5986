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
    _text("environment"),
    _text("last4"),
    Column("metadata", JSONB, nullable=False),
    _text("created_by"),
    _id("created_by_id"),
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

tenant_tombstones = Table(
    "tenant_tombstones",
    metadata,
    _id("tenant_id", key=True),
    _text("slug"),
    _id("actor_id"),
    _text("actor_kind"),
    _text("actor_name"),
    _text("reason"),
    Column("forced", Boolean, nullable=False),
    Column("executor_rows", JSONB),
    Column("registry_rows", JSONB, nullable=False),
    _moment("created_at"),
    _moment("reported_at", nullable=True),
    _moment("purged_at", nullable=True),
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

review_policies = _wanted(
    "review_policies",
    "policy_id",
    _text("min_risk"),
    Column("kinds", ARRAY(Text), nullable=False),
    Column("approvals", Integer, nullable=False),
    _text("expires"),
    Column("allow_self_approval", Boolean, nullable=False),
    Column("is_active", Boolean, nullable=False),
)

pending_revisions = Table(
    "pending_revisions",
    metadata,
    _id("tenant_id", key=True),
    _id("pending_id", key=True),
    _text("state"),
    Column("base_revision", BigInteger, nullable=False),
    _text("plan_hash"),
    Column("plan", JSONB, nullable=False),
    Column("risk", SmallInteger, nullable=False),
    _text("source"),
    _text("commit"),
    _id("author_id"),
    Column("author", JSONB, nullable=False),
    _id("author_made_by", nullable=True),
    Column("policies", ARRAY(Text), nullable=False),
    Column("approvals_needed", Integer, nullable=False),
    Column("self_approval", Boolean, nullable=False),
    _id("data_key_id"),
    Column("wrapped_key", LargeBinary),
    Column("sealed", LargeBinary),
    _moment("created_at"),
    _moment("expires_at"),
    _moment("ended_at", nullable=True),
    _text("ended_by"),
    _text("note"),
    Column("revision", BigInteger, nullable=False),
)

pending_approvals = Table(
    "pending_approvals",
    metadata,
    _id("tenant_id", key=True),
    _id("pending_id", key=True),
    _id("principal_id", key=True),
    _text("principal_name"),
    _text("note"),
    _moment("created_at"),
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
    Column("deleted", Integer, nullable=False),
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

staff = Table(
    "staff",
    metadata,
    _id("principal_id", key=True),
    _text("role"),
    Column("permissions", JSONB, nullable=False),
    _text("created_by"),
    _moment("created_at"),
    _moment("updated_at"),
)

tenant_principals = Table(
    "tenant_principals",
    metadata,
    _id("tenant_id", key=True),
    _id("principal_id", key=True),
    _moment("created_at"),
)

tenant_switches = Table(
    "tenant_switches",
    metadata,
    _id("tenant_id", key=True),
    _id("principal_id", key=True),
    _moment("switched_at"),
)

api_key_usage = Table(
    "api_key_usage",
    metadata,
    _id("id", key=True),
    _text("key_id"),
    _text("method"),
    _text("address"),
    _text("user_agent"),
    Column("count", BigInteger, nullable=False),
    _moment("bucket_at"),
)

platform_answers = Table(
    "platform_answers",
    metadata,
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
    _text("subject"),
    _moment("created_at"),
)


def _audit_events(name: str, *key: Column[Any]) -> Table:
    """An audit log: who, did what, to what, how it ended, and its place in the chain."""
    return Table(
        name,
        metadata,
        *key,
        _id("id", key=True),
        _id("told_id", nullable=True),
        Column("seq", BigInteger, nullable=False),
        _moment("created_at"),
        _id("actor_id"),
        *map(_text, ("actor_kind", "actor_name", "actor_role", "session", "address")),
        *map(_text, ("user_agent", "reason", "method", "action", "kind", "object")),
        _id("object_id"),
        *map(_text, ("outcome", "severity", "error")),
        Column("repeats", Integer, nullable=False),
        Column("fields", JSONB, nullable=False),
        Column("risk", SmallInteger, nullable=False),
        Column("revision", BigInteger, nullable=False),
        *map(_text, ("request_id", "source", "commit", "file")),
        Column("line", Integer, nullable=False),
        Column("previous", LargeBinary, nullable=False),
        Column("mac", LargeBinary, nullable=False),
    )


def _audit_head(name: str, key: Column[Any]) -> Table:
    return Table(
        name,
        metadata,
        key,
        Column("seq", BigInteger, nullable=False),
        Column("mac", LargeBinary, nullable=False),
        Column("proof", LargeBinary, nullable=False),
    )


def _audit_anchors(name: str, *key: Column[Any]) -> Table:
    return Table(
        name,
        metadata,
        *key,
        Column("seq", BigInteger, primary_key=True),
        Column("pruned", Boolean, primary_key=True),
        Column("mac", LargeBinary, nullable=False),
        _moment("created_at"),
        Column("signature", LargeBinary, nullable=False),
    )


def _audit_reviews(name: str, *key: Column[Any]) -> Table:
    return Table(
        name,
        metadata,
        *key,
        _id("event_id", key=True),
        _id("reviewer_id"),
        _text("reviewer_name"),
        _text("note"),
        _moment("created_at"),
    )


audit_events = _audit_events("audit_events", _id("tenant_id", key=True))
audit_heads = _audit_head("audit_heads", _id("tenant_id", key=True))
audit_anchors = _audit_anchors("audit_anchors", _id("tenant_id", key=True))
audit_reviews = _audit_reviews("audit_reviews", _id("tenant_id", key=True))
platform_audit_events = _audit_events("platform_audit_events")
platform_audit_head = _audit_head(
    "platform_audit_head",
    Column("singleton", Boolean, primary_key=True, server_default="true"),
)
platform_audit_anchors = _audit_anchors("platform_audit_anchors")
platform_audit_reviews = _audit_reviews("platform_audit_reviews")
