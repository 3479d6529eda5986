"""The executor's first tables: the projection, lanes and work, events, executions."""

from alembic import context, op

from migrations.tenancy import Tenancy, drop, hash_partitions, monthly_partitions, this_month

revision = "e0001"
down_revision = None

MONTHS = 12
RECEIPT_PARTITIONS = 8

GLOBAL = {
    "executor.feed_cursor": """
        CREATE TABLE executor.feed_cursor (
            singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
            position text NOT NULL,
            updated_at timestamptz NOT NULL DEFAULT now()
        )""",
}

EVERYTHING = "SELECT, INSERT, UPDATE, DELETE"
KEEP = "SELECT, INSERT, UPDATE"
APPEND = "SELECT, INSERT"

TENANT: dict[str, tuple[str, str]] = {
    "executor.tenants": (
        KEEP,
        """
        CREATE TABLE executor.tenants (
            tenant_id uuid PRIMARY KEY,
            slug text NOT NULL CONSTRAINT tenants_slug_key UNIQUE,
            enabled boolean NOT NULL,
            revision bigint NOT NULL,
            projected_at timestamptz NOT NULL DEFAULT now()
        )""",
    ),
    "executor.projected_objects": (
        EVERYTHING,
        """
        CREATE TABLE executor.projected_objects (
            tenant_id uuid NOT NULL REFERENCES executor.tenants,
            kind text NOT NULL,
            object_id uuid NOT NULL,
            name text NOT NULL,
            version integer NOT NULL,
            spec jsonb NOT NULL,
            PRIMARY KEY (tenant_id, kind, object_id),
            CONSTRAINT projected_objects_name_key UNIQUE (tenant_id, kind, name)
        )""",
    ),
    "executor.tenant_lanes": (
        KEEP,
        """
        CREATE TABLE executor.tenant_lanes (
            tenant_id uuid PRIMARY KEY,
            next_at timestamptz NOT NULL,
            claim_id uuid,
            lease_until timestamptz
        )""",
    ),
    "executor.lanes": (
        KEEP,
        """
        CREATE TABLE executor.lanes (
            tenant_id uuid NOT NULL REFERENCES executor.tenant_lanes,
            lane_id uuid NOT NULL,
            kind text NOT NULL,
            next_at timestamptz NOT NULL,
            concurrency integer NOT NULL CHECK (concurrency > 0),
            PRIMARY KEY (tenant_id, lane_id)
        )""",
    ),
    "executor.work": (
        EVERYTHING,
        """
        CREATE TABLE executor.work (
            tenant_id uuid NOT NULL,
            work_id uuid NOT NULL,
            kind text NOT NULL,
            lane_id uuid NOT NULL,
            target_id uuid NOT NULL,
            due_at timestamptz NOT NULL,
            priority smallint NOT NULL,
            attempt integer NOT NULL,
            claim_id uuid,
            lease_until timestamptz,
            PRIMARY KEY (tenant_id, work_id),
            CONSTRAINT work_lane_fkey FOREIGN KEY (tenant_id, lane_id) REFERENCES executor.lanes,
            CONSTRAINT work_tenant_lane_fkey
                FOREIGN KEY (tenant_id) REFERENCES executor.tenant_lanes
        )""",
    ),
    "executor.events": (
        APPEND,
        """
        CREATE TABLE executor.events (
            tenant_id uuid NOT NULL,
            id uuid NOT NULL,
            endpoint_id uuid NOT NULL,
            type text NOT NULL,
            delivery_key text NOT NULL,
            headers jsonb NOT NULL,
            body bytea NOT NULL,
            received_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (tenant_id, id)
        ) PARTITION BY RANGE (id)""",
    ),
    "executor.event_receipts": (
        APPEND,
        """
        CREATE TABLE executor.event_receipts (
            tenant_id uuid NOT NULL,
            endpoint_id uuid NOT NULL,
            key text NOT NULL,
            event_id uuid NOT NULL,
            received_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (tenant_id, endpoint_id, key)
        ) PARTITION BY HASH (tenant_id)""",
    ),
    "executor.executions": (
        KEEP,
        """
        CREATE TABLE executor.executions (
            tenant_id uuid NOT NULL,
            id uuid NOT NULL,
            connector_id uuid NOT NULL,
            connector text NOT NULL,
            state text NOT NULL
                CHECK (state IN ('pending', 'running', 'success', 'failed', 'timeout')),
            trigger_kind text NOT NULL CHECK (trigger_kind IN ('event', 'rpc')),
            trigger_id uuid NOT NULL,
            event_type text NOT NULL,
            subscription text NOT NULL,
            data_key_id uuid NOT NULL,
            sealed_input bytea,
            failure_reason text NOT NULL,
            failure_message text NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            started_at timestamptz,
            ended_at timestamptz,
            PRIMARY KEY (tenant_id, id)
        ) PARTITION BY RANGE (id)""",
    ),
    "executor.execution_steps": (
        KEEP,
        """
        CREATE TABLE executor.execution_steps (
            tenant_id uuid NOT NULL,
            execution_id uuid NOT NULL,
            position smallint NOT NULL,
            step text NOT NULL,
            state text NOT NULL
                CHECK (state IN ('running', 'success', 'failed', 'skipped', 'timeout')),
            attempts integer NOT NULL,
            response_status integer NOT NULL,
            sealed_output bytea,
            masked_output jsonb NOT NULL,
            failure_reason text NOT NULL,
            failure_message text NOT NULL,
            started_at timestamptz NOT NULL,
            ended_at timestamptz,
            PRIMARY KEY (tenant_id, execution_id, position)
        ) PARTITION BY RANGE (execution_id)""",
    ),
    "executor.run_requests": (
        APPEND,
        """
        CREATE TABLE executor.run_requests (
            tenant_id uuid NOT NULL,
            principal_id uuid NOT NULL,
            request_id uuid NOT NULL,
            request_hash bytea NOT NULL,
            execution_id uuid NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT run_requests_pkey PRIMARY KEY (tenant_id, principal_id, request_id)
        )""",
    ),
}

TIME_TABLES = ("executor.events", "executor.executions", "executor.execution_steps")

INDEXES = (
    # Workers claim due tenants, then due lanes, then due work, each in the order of its time.
    "CREATE INDEX tenant_lanes_due ON executor.tenant_lanes (next_at)",
    "CREATE INDEX lanes_due ON executor.lanes (tenant_id, next_at)",
    (
        "CREATE INDEX work_waiting ON executor.work (tenant_id, lane_id, priority, due_at, work_id)"
        " WHERE claim_id IS NULL"
    ),
    # When a lane is due again, without reading its backlog.
    "CREATE INDEX work_next ON executor.work (tenant_id, lane_id, due_at) WHERE claim_id IS NULL",
    (
        "CREATE INDEX work_claimed ON executor.work (tenant_id, lane_id, lease_until)"
        " WHERE claim_id IS NOT NULL"
    ),
    "CREATE INDEX executions_connector ON executor.executions (tenant_id, connector, id)",
)


def upgrade() -> None:
    """Make every table and protect it."""
    tenancy = Tenancy("executor", context.config.attributes["roles"])
    tenancy.open_schema("executor")
    tenancy.make(GLOBAL, TENANT)
    for statement in INDEXES:
        op.execute(statement)
    for table in TIME_TABLES:
        monthly_partitions(table, this_month(), MONTHS)
    hash_partitions("executor.event_receipts", RECEIPT_PARTITIONS)


def downgrade() -> None:
    """Drop the schema's tables, the newest first."""
    drop(GLOBAL, TENANT)
