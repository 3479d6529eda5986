"""What tenants want, a table a kind."""

from sqlalchemy import Boolean, Column, Integer, Text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from services.registry.tables.columns import id_, text, wanted

integrations = wanted(
    "integrations",
    "integration_id",
    text("display_name"),
    text("provider"),
    text("category"),
    text("environment"),
    text("base_url"),
    Column("is_primary", Boolean, nullable=False),
    Column("is_active", Boolean, nullable=False),
    Column("config", JSONB, nullable=False),
    id_("credential_id", nullable=True),
    id_("app_id", nullable=True),
    *(Column(name, JSONB, nullable=False) for name in ("automation", "sync")),
)

connectors = wanted(
    "connectors",
    "connector_id",
    text("display_name"),
    text("description"),
    Column("is_active", Boolean, nullable=False),
    Column("steps", JSONB, nullable=False),
    Column("lane", JSONB, nullable=False),
    Column("schedule", JSONB, nullable=False),
    Column("timeout", Text),
    Column("max_retries", Integer, nullable=False),
    Column("output", JSONB, nullable=False),
)

webhook_endpoints = wanted(
    "webhook_endpoints",
    "endpoint_id",
    text("direction"),
    Column("is_active", Boolean, nullable=False),
    id_("integration_id", nullable=True),
    id_("secret_id", nullable=True),
    text("auth"),
    id_("credential_id", nullable=True),
    *map(text, ("auth_header", "url")),
    *(Column(name, JSONB, nullable=False) for name in ("headers", "delivery")),
    text("app"),
    Column("tenants", ARRAY(Text), nullable=False),
    text("app_provider"),
    text("subject"),
    Column("redact", ARRAY(Text), nullable=False),
    text("app_owner"),
)

subscriptions = wanted(
    "subscriptions",
    "subscription_id",
    Column("is_active", Boolean, nullable=False),
    id_("endpoint_id", nullable=True),
    id_("connector_id", nullable=True),
    Column("event_types", ARRAY(Text), nullable=False),
    text("filter"),
    id_("target_id", nullable=True),
    *(Column(name, JSONB, nullable=False) for name in ("transform", "action", "sync")),
)

event_types = wanted(
    "event_types",
    "event_type_id",
    text("type"),
    Column("schema", JSONB, nullable=False),
    Column("is_active", Boolean, nullable=False),
)

review_policies = wanted(
    "review_policies",
    "policy_id",
    text("min_risk"),
    Column("kinds", ARRAY(Text), nullable=False),
    Column("approvals", Integer, nullable=False),
    text("expires"),
    Column("allow_self_approval", Boolean, nullable=False),
    Column("is_active", Boolean, nullable=False),
)
