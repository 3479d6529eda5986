"""The audit logs: a tenant's and the platform's, alike."""

from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Integer, LargeBinary, SmallInteger, Table
from sqlalchemy.dialects.postgresql import JSONB

from services.registry.tables.columns import id_, metadata, moment, text


def _audit_events(name: str, *key: Column[Any]) -> Table:
    """An audit log: who, did what, to what, how it ended, and its place in the chain."""
    return Table(
        name,
        metadata,
        *key,
        id_("id", key=True),
        id_("told_id", nullable=True),
        Column("seq", BigInteger, nullable=False),
        moment("created_at"),
        id_("actor_id"),
        *map(text, ("actor_kind", "actor_name", "actor_role", "session", "address")),
        *map(text, ("user_agent", "reason", "method", "action", "kind", "object")),
        id_("object_id"),
        *map(text, ("outcome", "severity", "error")),
        Column("repeats", Integer, nullable=False),
        Column("fields", JSONB, nullable=False),
        Column("risk", SmallInteger, nullable=False),
        Column("revision", BigInteger, nullable=False),
        *map(text, ("request_id", "source", "commit", "file")),
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
        moment("created_at"),
        Column("signature", LargeBinary, nullable=False),
    )


def _audit_reviews(name: str, *key: Column[Any]) -> Table:
    return Table(
        name,
        metadata,
        *key,
        id_("event_id", key=True),
        id_("reviewer_id"),
        text("reviewer_name"),
        text("note"),
        moment("created_at"),
    )


audit_events = _audit_events("audit_events", id_("tenant_id", key=True))
audit_heads = _audit_head("audit_heads", id_("tenant_id", key=True))
audit_anchors = _audit_anchors("audit_anchors", id_("tenant_id", key=True))
audit_reviews = _audit_reviews("audit_reviews", id_("tenant_id", key=True))
platform_audit_events = _audit_events("platform_audit_events")
platform_audit_head = _audit_head(
    "platform_audit_head",
    Column("singleton", Boolean, primary_key=True, server_default="true"),
)
platform_audit_anchors = _audit_anchors("platform_audit_anchors")
platform_audit_reviews = _audit_reviews("platform_audit_reviews")
