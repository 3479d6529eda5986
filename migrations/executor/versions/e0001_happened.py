"""The executor's first tables: the projection, lanes and work, events, executions."""

from alembic import context, op

from migrations import partitions
from migrations.tenancy import Tenancy, drop, hash_partitions

revision = "e0001"
down_revision = None

RECEIPT_PARTITIONS = 8

GLOBAL = {
    "executor.feed_cursor": """
        CREATE TABLE executor.feed_cursor (
            singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
            position text NOT NULL,
            updated_at timestamptz NOT NULL DEFAULT now()
        )""",
    "executor.provider_switches": """
        CREATE TABLE executor.provider_switches (
            provider text PRIMARY KEY,
            reason text NOT NULL,
            switched_off_at timestamptz NOT NULL DEFAULT now()
        )""",
    # What was done and is not in the registry's audit log yet.
    "executor.platform_audit_outbox": """
        CREATE TABLE executor.platform_audit_outbox (
            id uuid PRIMARY KEY,
            event jsonb NOT NULL
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
            projected_at timestamptz NOT NULL DEFAULT now(),
            -- Since when it is on its way out, and what of it is deleted here already, by table.
            draining_since timestamptz,
            purged_rows jsonb NOT NULL DEFAULT '{}'
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
    "executor.schedules": (
        EVERYTHING,
        """
        CREATE TABLE executor.schedules (
            tenant_id uuid NOT NULL REFERENCES executor.tenants,
            schedule_id uuid NOT NULL,
            recurrence jsonb NOT NULL,
            moment timestamptz NOT NULL,
            next_at timestamptz NOT NULL,
            PRIMARY KEY (tenant_id, schedule_id)
        )""",
    ),
    "executor.tenant_lanes": (
        KEEP,
        """
        CREATE TABLE executor.tenant_lanes (
            tenant_id uuid PRIMARY KEY,
            next_at timestamptz NOT NULL,
            claim_id uuid,
            lease_until timestamptz,
            paused boolean NOT NULL DEFAULT false,
            weight smallint NOT NULL DEFAULT 1 CHECK (weight BETWEEN 1 AND 100),
            max_running integer CHECK (max_running > 0),
            provider_caps jsonb NOT NULL DEFAULT '{}',
            work_per_hour integer CHECK (work_per_hour > 0),
            quota_at timestamptz NOT NULL DEFAULT 'epoch'
        )""",
    ),
    "executor.lanes": (
        EVERYTHING,
        """
        CREATE TABLE executor.lanes (
            tenant_id uuid NOT NULL REFERENCES executor.tenant_lanes,
            lane_id uuid NOT NULL,
            kind text NOT NULL,
            provider text NOT NULL,
            next_at timestamptz NOT NULL,
            pause_reason text NOT NULL DEFAULT '',
            owner text NOT NULL DEFAULT 'active'
                CHECK (owner IN ('active', 'inactive', 'gone')),
            weight smallint NOT NULL CHECK (weight BETWEEN 1 AND 100),
            concurrency integer NOT NULL CHECK (concurrency > 0),
            ordering text NOT NULL CHECK (ordering IN ('none', 'lane', 'key')),
            rate_per_s double precision CHECK (rate_per_s > 0),
            burst integer NOT NULL CHECK (burst > 0),
            rate_at timestamptz NOT NULL DEFAULT 'epoch',
            retry_s double precision[] NOT NULL,
            breaker_threshold integer CHECK (breaker_threshold > 0),
            breaker_reset_s double precision NOT NULL CHECK (breaker_reset_s > 0),
            breaker_probes integer NOT NULL CHECK (breaker_probes > 0),
            breaker_trips_allowed integer CHECK (breaker_trips_allowed > 0),
            breaker text NOT NULL DEFAULT 'CLOSED'
                CHECK (breaker IN ('CLOSED', 'OPEN', 'HALF_OPEN')),
            failures integer NOT NULL DEFAULT 0,
            trips integer NOT NULL DEFAULT 0,
            open_until timestamptz NOT NULL DEFAULT 'epoch',
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
            key text,
            place bigint GENERATED ALWAYS AS IDENTITY,
            blocked boolean NOT NULL,
            due_at timestamptz NOT NULL,
            deadline_at timestamptz,
            priority smallint NOT NULL,
            attempt integer NOT NULL,
            failures integer NOT NULL DEFAULT 0,
            cancelled boolean NOT NULL DEFAULT false,
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
                CHECK (state IN
                    ('pending', 'running', 'success', 'failed', 'timeout', 'cancelled')),
            trigger_kind text NOT NULL CHECK (trigger_kind IN ('event', 'rpc', 'schedule')),
            trigger_id uuid NOT NULL,
            event_type text NOT NULL,
            subscription text NOT NULL,
            data_key_id uuid NOT NULL,
            sealed_input bytea,
            links jsonb NOT NULL,
            retries integer NOT NULL DEFAULT 0,
            failed_steps integer NOT NULL DEFAULT 0,
            sealed_output bytea,
            masked_output jsonb NOT NULL DEFAULT '{}',
            failure_reason text NOT NULL,
            failure_message text NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            started_at timestamptz,
            ended_at timestamptz,
            watched_until timestamptz,
            PRIMARY KEY (tenant_id, id)
        ) PARTITION BY RANGE (id)""",
    ),
    # What executions are found by: an index on their jsonb would not be used under a policy.
    "executor.execution_links": (
        APPEND,
        """
        CREATE TABLE executor.execution_links (
            tenant_id uuid NOT NULL,
            name text NOT NULL,
            value text NOT NULL,
            execution_id uuid NOT NULL,
            PRIMARY KEY (tenant_id, name, value, execution_id)
        ) PARTITION BY RANGE (execution_id)""",
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
            retries integer NOT NULL,
            repeatable boolean NOT NULL,
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
    "executor.audit_outbox": (
        APPEND,
        """
        CREATE TABLE executor.audit_outbox (
            tenant_id uuid NOT NULL REFERENCES executor.tenants,
            id uuid NOT NULL,
            event jsonb NOT NULL,
            PRIMARY KEY (tenant_id, id)
        )""",
    ),
}

TIME_TABLES = ("events", "executions", "execution_links", "execution_steps")

FUNCTIONS = (
    # Records of many claims are sent together: one that was lost must undo what was sent with it.
    """
    CREATE FUNCTION executor.hold_work(tenant uuid, works uuid[], claims uuid[]) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog AS $$
    DECLARE
        held bigint;
    BEGIN
        SELECT count(*) INTO held FROM (
            SELECT FROM executor.work AS w
            JOIN unnest(works, claims) AS u (work_id, claim_id) USING (work_id, claim_id)
            WHERE w.tenant_id = tenant
            ORDER BY w.work_id
            FOR UPDATE OF w
        ) AS locked;
        IF held <> cardinality(works) THEN
            RAISE EXCEPTION 'a claim is lost'
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'work_claim_held';
        END IF;
    END $$""",
    # The bucket holds an hour's work; `quota_at` is when it will be full again, an hour later.
    """
    CREATE FUNCTION executor.spend_quota(tenant uuid, items bigint) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog AS $$
    DECLARE
        lane executor.tenant_lanes;
        used timestamptz;
        most bigint;
    BEGIN
        SELECT * INTO lane FROM executor.tenant_lanes
        WHERE tenant_id = tenant AND work_per_hour IS NOT NULL FOR NO KEY UPDATE;
        IF NOT FOUND THEN
            RETURN;
        END IF;
        -- More than the bucket ever holds goes when it is full, and is paid for afterwards.
        most := least(items, lane.work_per_hour);
        used := greatest(lane.quota_at, now())
            + make_interval(secs => most * 3600.0 / lane.work_per_hour);
        IF used > now() + interval '1 hour' THEN
            RAISE EXCEPTION 'the quota is used up' USING
                ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'work_quota',
                HINT = format('%s %s', lane.work_per_hour,
                    ceil(extract(epoch FROM used - now() - interval '1 hour')));
        END IF;
        UPDATE executor.tenant_lanes
        SET quota_at = used
            + make_interval(secs => (items - most) * 3600.0 / lane.work_per_hour)
        WHERE tenant_id = tenant;
    END $$""",
)

INDEXES = (
    # The scheduler looks over all tenants for what is due.
    "CREATE INDEX schedules_due ON executor.schedules (next_at)",
    # Workers claim due tenants, then due lanes, then due work, each in the order of its time.
    "CREATE INDEX tenant_lanes_due ON executor.tenant_lanes (next_at) WHERE NOT paused",
    "CREATE INDEX lanes_due ON executor.lanes (tenant_id, next_at)",
    (
        "CREATE INDEX work_waiting ON executor.work (tenant_id, lane_id, priority, due_at, work_id)"
        " WHERE claim_id IS NULL AND NOT blocked"
    ),
    # When a lane is due again, without reading its backlog.
    (
        "CREATE INDEX work_next ON executor.work (tenant_id, lane_id, due_at)"
        " WHERE claim_id IS NULL AND NOT blocked"
    ),
    (
        "CREATE INDEX work_claimed ON executor.work (tenant_id, lane_id, lease_until)"
        " WHERE claim_id IS NOT NULL"
    ),
    # What must go in order: who is the next of its key.
    "CREATE INDEX work_key ON executor.work (tenant_id, lane_id, key, place) WHERE key IS NOT NULL",
    "CREATE INDEX work_target ON executor.work (tenant_id, target_id)",
    "CREATE INDEX executions_connector ON executor.executions (tenant_id, connector, id)",
    # What has had its time is forgotten over all tenants, the oldest first.
    "CREATE INDEX event_receipts_age ON executor.event_receipts (received_at)",
    "CREATE INDEX run_requests_age ON executor.run_requests (created_at)",
)


def upgrade() -> None:
    """Make every table and protect it."""
    tenancy = Tenancy("executor", context.config.attributes["roles"])
    tenancy.open_schema("executor")
    tenancy.make(GLOBAL, TENANT)
    for statement in (*INDEXES, *FUNCTIONS):
        op.execute(statement)
    tenancy.by_month("executor", TIME_TABLES)
    hash_partitions("executor.event_receipts", RECEIPT_PARTITIONS)


def downgrade() -> None:
    """Drop the schema's functions and tables, the newest first."""
    op.execute("DROP FUNCTION executor.hold_work, executor.spend_quota")
    drop(GLOBAL, TENANT)
    partitions.drop("executor")
