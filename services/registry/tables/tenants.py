"""Tenants: how they stand, and what is left of those that are gone."""

from sqlalchemy import BigInteger, Boolean, Column, Table
from sqlalchemy.dialects.postgresql import JSONB

from services.registry.tables.columns import id_, metadata, moment, text

deployment = Table(
    "deployment",
    metadata,
    Column("singleton", Boolean, primary_key=True),
    id_("incarnation"),
    moment("created_at"),
)

tenants = Table(
    "tenants",
    metadata,
    id_("tenant_id", key=True),
    text("slug"),
    text("display_name"),
    text("state"),
    Column("enabled", Boolean, nullable=False),
    Column("limits", JSONB, nullable=False),
    Column("labels", JSONB, nullable=False),
    Column("annotations", JSONB, nullable=False),
    Column("revision", BigInteger, nullable=False),
    moment("created_at"),
    moment("updated_at"),
)

tenant_status = Table(
    "tenant_status",
    metadata,
    id_("tenant_id", key=True),
    Column("projected_revision", BigInteger, nullable=False),
    moment("reported_at"),
)

tenant_tombstones = Table(
    "tenant_tombstones",
    metadata,
    id_("tenant_id", key=True),
    text("slug"),
    id_("actor_id"),
    text("actor_kind"),
    text("actor_name"),
    text("reason"),
    Column("forced", Boolean, nullable=False),
    Column("executor_rows", JSONB),
    Column("registry_rows", JSONB, nullable=False),
    moment("created_at"),
    moment("reported_at", nullable=True),
    moment("purged_at", nullable=True),
)
