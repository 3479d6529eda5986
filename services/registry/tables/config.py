"""What an apply leaves besides the objects, and what waits for approval."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Identity,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from services.chassis.database import Xid8
from services.registry.tables.columns import id_, metadata, moment, text
from services.registry.tables.keys import wrapped_by_version

pending_revisions = Table(
    "pending_revisions",
    metadata,
    id_("tenant_id", key=True),
    id_("pending_id", key=True),
    text("state"),
    Column("base_revision", BigInteger, nullable=False),
    text("plan_hash"),
    Column("plan", JSONB, nullable=False),
    Column("risk", SmallInteger, nullable=False),
    text("source"),
    text("commit"),
    id_("author_id"),
    Column("author", JSONB, nullable=False),
    id_("author_made_by", nullable=True),
    Column("policies", ARRAY(Text), nullable=False),
    Column("approvals_needed", Integer, nullable=False),
    Column("self_approval", Boolean, nullable=False),
    id_("data_key_id"),
    Column("wrapped_key", LargeBinary),
    Column("sealed", LargeBinary),
    moment("created_at"),
    moment("expires_at"),
    moment("ended_at", nullable=True),
    text("ended_by"),
    text("note"),
    Column("revision", BigInteger, nullable=False),
)

pending_approvals = Table(
    "pending_approvals",
    metadata,
    id_("tenant_id", key=True),
    id_("pending_id", key=True),
    id_("principal_id", key=True),
    text("principal_name"),
    text("note"),
    moment("created_at"),
)

config_ownership = Table(
    "config_ownership",
    metadata,
    id_("tenant_id", key=True),
    Column("kind", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("source", Text, primary_key=True),
    Column("fields", ARRAY(Text), nullable=False),
)

config_revisions = Table(
    "config_revisions",
    metadata,
    id_("tenant_id", key=True),
    Column("revision", BigInteger, primary_key=True),
    text("source"),
    text("principal_name"),
    text("plan_hash"),
    text("commit"),
    Column("created", Integer, nullable=False),
    Column("updated", Integer, nullable=False),
    Column("deleted", Integer, nullable=False),
    moment("created_at"),
)

request_answers = Table(
    "request_answers",
    metadata,
    id_("tenant_id", key=True),
    id_("principal_id", key=True),
    Column("method", Text, primary_key=True),
    id_("request_id", key=True),
    Column("request_hash", LargeBinary, nullable=False),
    Column("answer", LargeBinary, nullable=False),
    moment("created_at"),
    *wrapped_by_version(),
)

platform_answers = Table(
    "platform_answers",
    metadata,
    id_("principal_id", key=True),
    Column("method", Text, primary_key=True),
    id_("request_id", key=True),
    Column("request_hash", LargeBinary, nullable=False),
    Column("answer", LargeBinary, nullable=False),
    moment("created_at"),
    *wrapped_by_version(),
)

feed = Table(
    "feed",
    metadata,
    id_("tenant_id", key=True),
    Column("seq", BigInteger, Identity(always=True), primary_key=True),
    Column("xid", Xid8, nullable=False),
    text("kind"),
    Column("revision", BigInteger, nullable=False),
    text("subject"),
    moment("created_at"),
)
