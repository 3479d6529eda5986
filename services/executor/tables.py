"""The executor's tables for Core statements, as the migrations made them; only names and types.

Keys, checks and policies live in `migrations/executor`; a test holds the two alike.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Uuid,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from services.chassis.database import Xid8

METADATA = MetaData(schema="executor")
TIME = DateTime(timezone=True)


def _column(name: str, kind: Any, *, nullable: bool = False) -> Column[Any]:
    return Column(name, kind, nullable=nullable)


FEED_CURSOR = Table(
    "feed_cursor",
    METADATA,
    _column("singleton", Boolean),
    _column("position", Text),
    _column("updated_at", TIME),
)

TENANTS = Table(
    "tenants",
    METADATA,
    _column("tenant_id", Uuid),
    _column("slug", Text),
    _column("enabled", Boolean),
    _column("revision", BigInteger),
    _column("projected_at", TIME),
    _column("draining_since", TIME, nullable=True),
    _column("purged_rows", JSONB),
)

PROJECTED_OBJECTS = Table(
    "projected_objects",
    METADATA,
    _column("tenant_id", Uuid),
    _column("kind", Text),
    _column("object_id", Uuid),
    _column("name", Text),
    _column("version", Integer),
    _column("spec", JSONB),
)

APP_STREAMS = Table(
    "app_streams",
    METADATA,
    _column("tenant_id", Uuid),
    _column("endpoint_id", Uuid),
    _column("provider", Text),
    _column("app", Text),
    _column("endpoint", Text),
)

APP_ACCOUNTS = Table(
    "app_accounts",
    METADATA,
    _column("tenant_id", Uuid),
    _column("endpoint_id", Uuid),
    _column("provider", Text),
    _column("app", Text),
    _column("account", Text),
    _column("endpoint", Text),
    _column("active", Boolean),
    _column("app_owner", Text),
)

SCHEDULES = Table(
    "schedules",
    METADATA,
    _column("tenant_id", Uuid),
    _column("schedule_id", Uuid),
    _column("recurrence", JSONB),
    _column("moment", TIME),
    _column("next_at", TIME),
)

TENANT_LANES = Table(
    "tenant_lanes",
    METADATA,
    _column("tenant_id", Uuid),
    _column("next_at", TIME),
    _column("claim_id", Uuid, nullable=True),
    _column("lease_until", TIME, nullable=True),
    _column("paused", Boolean),
    _column("weight", SmallInteger),
    _column("max_running", Integer, nullable=True),
    _column("provider_caps", JSONB),
    _column("work_per_hour", Integer, nullable=True),
    _column("quota_at", TIME),
)

LANES = Table(
    "lanes",
    METADATA,
    _column("tenant_id", Uuid),
    _column("lane_id", Uuid),
    _column("kind", Text),
    _column("provider", Text),
    _column("next_at", TIME),
    _column("pause_reason", Text),
    _column("owner", Text),
    _column("weight", SmallInteger),
    _column("concurrency", Integer),
    _column("ordering", Text),
    _column("rate_per_s", Double, nullable=True),
    _column("burst", Integer),
    _column("rate_at", TIME),
    _column("retry_s", ARRAY(Double)),
    _column("breaker_threshold", Integer, nullable=True),
    _column("breaker_reset_s", Double),
    _column("breaker_probes", Integer),
    _column("breaker_trips_allowed", Integer, nullable=True),
    _column("breaker", Text),
    _column("failures", Integer),
    _column("trips", Integer),
    _column("open_until", TIME),
)

WORK = Table(
    "work",
    METADATA,
    _column("tenant_id", Uuid),
    _column("work_id", Uuid),
    _column("kind", Text),
    _column("lane_id", Uuid),
    _column("target_id", Uuid),
    _column("key", Text, nullable=True),
    _column("place", BigInteger),
    _column("blocked", Boolean),
    _column("due_at", TIME),
    _column("deadline_at", TIME, nullable=True),
    _column("priority", SmallInteger),
    _column("attempt", Integer),
    _column("failures", Integer),
    _column("cancelled", Boolean),
    _column("claim_id", Uuid, nullable=True),
    _column("lease_until", TIME, nullable=True),
)

PROVIDER_SWITCHES = Table(
    "provider_switches",
    METADATA,
    _column("provider", Text),
    _column("reason", Text),
    _column("switched_off_at", TIME),
)

PLATFORM_AUDIT_OUTBOX = Table(
    "platform_audit_outbox", METADATA, _column("id", Uuid), _column("event", JSONB)
)

AUDIT_OUTBOX = Table(
    "audit_outbox",
    METADATA,
    _column("tenant_id", Uuid),
    _column("id", Uuid),
    _column("event", JSONB),
)

EVENTS = Table(
    "events",
    METADATA,
    _column("tenant_id", Uuid),
    _column("id", Uuid),
    _column("endpoint_id", Uuid),
    _column("type", Text),
    _column("delivery_key", Text),
    _column("headers", JSONB),
    _column("body", LargeBinary),
    _column("received_at", TIME),
    _column("data_key_id", Uuid, nullable=True),
    _column("sealed_headers", LargeBinary, nullable=True),
    _column("xid", Xid8()),
)

CONSUMER_GROUPS = Table(
    "consumer_groups",
    METADATA,
    _column("tenant_id", Uuid),
    _column("name", Text),
    _column("xid", Xid8()),
    _column("event_id", Uuid),
    _column("claim_id", Uuid, nullable=True),
    _column("lease_until", TIME, nullable=True),
    _column("used_at", TIME),
    _column("generation", BigInteger),
)

REPLAYS = Table(
    "replays",
    METADATA,
    _column("tenant_id", Uuid),
    _column("replay_id", Uuid),
    _column("request_hash", LargeBinary),
    _column("after_id", Uuid),
    _column("until_id", Uuid),
    _column("events", BigInteger),
    _column("deliveries", BigInteger),
    _column("executions", BigInteger),
    _column("unreadable", BigInteger),
    _column("updated_at", TIME),
    _column("sync_runs", BigInteger),
)

EVENT_RECEIPTS = Table(
    "event_receipts",
    METADATA,
    _column("tenant_id", Uuid),
    _column("endpoint_id", Uuid),
    _column("key", Text),
    _column("event_id", Uuid),
    _column("received_at", TIME),
)

EXECUTIONS = Table(
    "executions",
    METADATA,
    _column("tenant_id", Uuid),
    _column("id", Uuid),
    _column("connector_id", Uuid),
    _column("connector", Text),
    _column("state", Text),
    _column("trigger_kind", Text),
    _column("trigger_id", Uuid),
    _column("event_type", Text),
    _column("subscription", Text),
    _column("data_key_id", Uuid),
    _column("sealed_input", LargeBinary, nullable=True),
    _column("links", JSONB),
    _column("retries", Integer),
    _column("failed_steps", Integer),
    _column("sealed_output", LargeBinary, nullable=True),
    _column("masked_output", JSONB),
    _column("failure_reason", Text),
    _column("failure_message", Text),
    _column("created_at", TIME),
    _column("started_at", TIME, nullable=True),
    _column("ended_at", TIME, nullable=True),
    _column("watched_until", TIME, nullable=True),
)

EXECUTION_LINKS = Table(
    "execution_links",
    METADATA,
    _column("tenant_id", Uuid),
    _column("name", Text),
    _column("value", Text),
    _column("execution_id", Uuid),
)

EXECUTION_STEPS = Table(
    "execution_steps",
    METADATA,
    _column("tenant_id", Uuid),
    _column("execution_id", Uuid),
    _column("position", SmallInteger),
    _column("step", Text),
    _column("state", Text),
    _column("attempts", Integer),
    _column("retries", Integer),
    _column("repeatable", Boolean),
    _column("response_status", Integer),
    _column("sealed_output", LargeBinary, nullable=True),
    _column("masked_output", JSONB),
    _column("failure_reason", Text),
    _column("failure_message", Text),
    _column("started_at", TIME),
    _column("ended_at", TIME, nullable=True),
)

RUN_REQUESTS = Table(
    "run_requests",
    METADATA,
    _column("tenant_id", Uuid),
    _column("principal_id", Uuid),
    _column("request_id", Uuid),
    _column("request_hash", LargeBinary),
    _column("execution_id", Uuid),
    _column("created_at", TIME),
)

DELIVERIES = Table(
    "deliveries",
    METADATA,
    _column("tenant_id", Uuid),
    _column("id", Uuid),
    _column("event_id", Uuid),
    _column("event_type", Text),
    _column("endpoint_id", Uuid),
    _column("endpoint", Text),
    _column("subscription", Text),
    _column("state", Text),
    _column("attempts", Integer),
    _column("response_status", Integer),
    _column("failure_reason", Text),
    _column("payload_hash", LargeBinary),
    _column("data_key_id", Uuid, nullable=True),
    _column("sealed_body", LargeBinary, nullable=True),
    _column("created_at", TIME),
    _column("ended_at", TIME, nullable=True),
    _column("message_id", Uuid, nullable=True),
    _column("order_key", Text),
)

DELIVERY_ATTEMPTS = Table(
    "delivery_attempts",
    METADATA,
    _column("tenant_id", Uuid),
    _column("delivery_id", Uuid),
    _column("number", Integer),
    _column("started_at", TIME),
    _column("duration_ms", Integer),
    _column("response_status", Integer),
    _column("failure_reason", Text),
    _column("response_head", Text),
)

SYNC_STATES = Table(
    "sync_states",
    METADATA,
    _column("tenant_id", Uuid),
    _column("stream_id", Uuid),
    _column("cursor", Text),
    _column("asked", LargeBinary),
    _column("beginning", BigInteger),
    _column("last_run_id", Uuid, nullable=True),
    _column("data_key_id", Uuid, nullable=True),
    _column("sealed_digest_key", LargeBinary, nullable=True),
    _column("sealed_by", Uuid, nullable=True),
    _column("covered_by", Uuid, nullable=True),
    _column("covered_at", TIME, nullable=True),
    _column("full_covered_by", Uuid, nullable=True),
    _column("full_covered_at", TIME, nullable=True),
    _column("failures", Integer),
    _column("last_success_at", TIME, nullable=True),
    _column("last_failure_at", TIME, nullable=True),
    _column("last_failure_reason", Text),
)

SYNC_RUNS = Table(
    "sync_runs",
    METADATA,
    _column("tenant_id", Uuid),
    _column("id", Uuid),
    _column("stream_id", Uuid),
    _column("stream", Text),
    _column("state", Text),
    _column("whole", Boolean),
    _column("trigger_kind", Text),
    _column("trigger_id", Uuid),
    _column("data_key_id", Uuid, nullable=True),
    _column("sealed_place", LargeBinary, nullable=True),
    _column("beginning", BigInteger),
    _column("pages", BigInteger),
    _column("seen", BigInteger),
    _column("created", BigInteger),
    _column("updated", BigInteger),
    _column("deleted", BigInteger),
    _column("failure_reason", Text),
    _column("failure_message", Text),
    _column("covered_by", Uuid, nullable=True),
    _column("created_at", TIME),
    _column("started_at", TIME, nullable=True),
    _column("ended_at", TIME, nullable=True),
)

RECORDS = Table(
    "records",
    METADATA,
    _column("tenant_id", Uuid),
    _column("stream_id", Uuid),
    _column("key", Text),
    _column("digest", LargeBinary),
    _column("data_key_id", Uuid, nullable=True),
    _column("sealed_data", LargeBinary, nullable=True),
    _column("version", BigInteger),
    _column("seen_by", Uuid),
    _column("changed_at", TIME),
    _column("deleted_at", TIME, nullable=True),
)
