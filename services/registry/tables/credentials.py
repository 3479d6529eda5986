"""Credentials: what is wanted of them, what is sealed, how they stand; and venues."""

from sqlalchemy import BigInteger, Column, DateTime, Integer, LargeBinary, Table, Text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from services.registry.tables.columns import id_, metadata, moment, text, wanted

venues = wanted("venues", "venue_id", text("display_name"))

credentials = wanted(
    "credentials",
    "credential_id",
    *map(text, ("type", "description")),
    Column("version", Integer, nullable=False),
    text("environment"),
    id_("venue_id", nullable=True),
    *map(text, ("provider", "key_type")),
    id_("app_id", nullable=True),
    text("grant"),
    Column("scopes", ARRAY(Text), nullable=False),
    text("expires"),
    moment("expires_at", nullable=True),
    Column("allowed_endpoints", ARRAY(Text), nullable=False),
    Column("allowed_ranges", ARRAY(Text), nullable=False),
    *(Column(name, JSONB, nullable=False) for name in ("rotation", "config", "provider_metadata")),
    text("notes"),
    Column("declared", JSONB, nullable=False),
    text("created_by"),
    text("generate"),
)

credential_versions = Table(
    "credential_versions",
    metadata,
    id_("tenant_id", key=True),
    id_("credential_id", key=True),
    Column("version", Integer, primary_key=True),
    id_("version_id"),
    id_("data_key_id"),
    Column("wrapped_key", LargeBinary),
    Column("sealed", LargeBinary),
    Column("fingerprints", JSONB, nullable=False),
    moment("created_at"),
    id_("key_id"),
    *map(text, ("origin", "created_by")),
    moment("overlap_until", nullable=True),
    moment("expires_at", nullable=True),
    moment("refresh_expires_at", nullable=True),
    Column("scopes", ARRAY(Text), nullable=False),
    moment("shredded_at", nullable=True),
    text("public_key"),
)

credential_status = Table(
    "credential_status",
    metadata,
    id_("tenant_id", key=True),
    id_("credential_id", key=True),
    *map(text, ("status", "reason")),
    *(moment(name, nullable=True) for name in ("validated_at", "used_at")),
    Column("rate_limit", JSONB, nullable=False),
    moment("refresh_at", nullable=True),
    Column("failures", Integer, nullable=False),
    moment("cool_until", nullable=True),
    id_("lease_id", nullable=True),
    moment("lease_until", nullable=True),
    Column("fence", BigInteger, nullable=False),
    Column("intent_version", Integer),
    *(moment(name, nullable=True) for name in ("rotate_at", "warn_at")),
    Column("noticed", ARRAY(Text), nullable=False),
    moment("revoked_at", nullable=True),
    *map(text, ("revoked_by", "revoke_reason")),
)

credential_uses = Table(
    "credential_uses",
    metadata,
    id_("tenant_id", key=True),
    id_("credential_id", key=True),
    Column("bucket_at", DateTime(timezone=True), primary_key=True),
    Column("uses", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
)
