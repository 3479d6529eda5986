"""The tables of both audit logs: each tenant's, and the platform's, which has no tenant.

A log is append-only and a chain: its head moves forward alone, and its anchors are signed. The key
to all of it is outside the database.
"""

from alembic import op

ALL = "SELECT, INSERT, UPDATE"
APPEND = "SELECT, INSERT"

TIME_TABLES = ("audit_events", "platform_audit_events")

_EVENT = """
            id uuid NOT NULL,
            -- By which another service told it, once; its time may be any.
            told_id uuid,
            seq bigint NOT NULL CHECK (seq > 0),
            created_at timestamptz NOT NULL,
            actor_id uuid NOT NULL,
            actor_kind text NOT NULL,
            actor_name text NOT NULL,
            actor_role text NOT NULL,
            session text NOT NULL,
            address text NOT NULL,
            user_agent text NOT NULL,
            reason text NOT NULL,
            method text NOT NULL,
            action text NOT NULL,
            kind text NOT NULL,
            object text NOT NULL,
            object_id uuid NOT NULL,
            outcome text NOT NULL CHECK (outcome IN ('done', 'refused', 'failed')),
            severity text NOT NULL CHECK (severity IN ('info', 'warning', 'error')),
            error text NOT NULL,
            -- How often the same was refused before without being written down.
            repeats integer NOT NULL CHECK (repeats >= 0),
            fields jsonb NOT NULL,
            risk smallint NOT NULL CHECK (risk BETWEEN 1 AND 4),
            revision bigint NOT NULL,
            request_id text NOT NULL,
            source text NOT NULL,
            commit text NOT NULL,
            file text NOT NULL,
            line integer NOT NULL,
            previous bytea NOT NULL,
            mac bytea NOT NULL,
"""
_HEAD = """
            seq bigint NOT NULL,
            mac bytea NOT NULL,
            -- Made with a key that the database has not.
            proof bytea NOT NULL
"""
_ANCHOR = """
            seq bigint NOT NULL,
            -- Whether the events up to it were forgotten on purpose.
            pruned boolean NOT NULL,
            mac bytea NOT NULL,
            created_at timestamptz NOT NULL,
            signature bytea NOT NULL,
"""
_REVIEW = """
            event_id uuid NOT NULL,
            reviewer_id uuid NOT NULL,
            reviewer_name text NOT NULL,
            note text NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
"""

GLOBAL = {
    "registry.platform_audit_events": f"""
        CREATE TABLE registry.platform_audit_events (
            {_EVENT}
            PRIMARY KEY (id)
        ) PARTITION BY RANGE (id)""",
    "registry.platform_audit_head": f"""
        CREATE TABLE registry.platform_audit_head (
            singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
            {_HEAD}
        )""",
    "registry.platform_audit_anchors": f"""
        CREATE TABLE registry.platform_audit_anchors (
            {_ANCHOR}
            PRIMARY KEY (seq, pruned)
        )""",
    "registry.platform_audit_reviews": f"""
        CREATE TABLE registry.platform_audit_reviews (
            {_REVIEW}
            CONSTRAINT platform_audit_reviews_pkey PRIMARY KEY (event_id)
        )""",
}

TENANT: dict[str, tuple[str, str]] = {
    "registry.audit_events": (
        APPEND,
        f"""
        CREATE TABLE registry.audit_events (
            tenant_id uuid NOT NULL,
            {_EVENT}
            PRIMARY KEY (tenant_id, id)
        ) PARTITION BY RANGE (id)""",
    ),
    "registry.audit_heads": (
        ALL,
        f"""
        CREATE TABLE registry.audit_heads (
            tenant_id uuid PRIMARY KEY,
            {_HEAD}
        )""",
    ),
    "registry.audit_anchors": (
        APPEND,
        f"""
        CREATE TABLE registry.audit_anchors (
            tenant_id uuid NOT NULL,
            {_ANCHOR}
            PRIMARY KEY (tenant_id, seq, pruned)
        )""",
    ),
    "registry.audit_reviews": (
        APPEND,
        f"""
        CREATE TABLE registry.audit_reviews (
            tenant_id uuid NOT NULL,
            {_REVIEW}
            CONSTRAINT audit_reviews_pkey PRIMARY KEY (tenant_id, event_id)
        )""",
    ),
}

INDEXES = (
    # The chain is walked in its own order.
    "CREATE INDEX audit_events_chain ON registry.audit_events (tenant_id, seq)",
    "CREATE INDEX platform_audit_events_chain ON registry.platform_audit_events (seq)",
    # What a service tells again is known; what goes with a month is asked by its last places.
    (
        "CREATE INDEX audit_events_told ON registry.audit_events (tenant_id, told_id) "
        "WHERE told_id IS NOT NULL"
    ),
    (
        "CREATE INDEX platform_audit_events_told ON registry.platform_audit_events (told_id) "
        "WHERE told_id IS NOT NULL"
    ),
    "CREATE INDEX audit_anchors_pruned ON registry.audit_anchors (tenant_id, seq) WHERE pruned",
    "CREATE INDEX audit_events_object ON registry.audit_events (tenant_id, kind, object, id)",
    "CREATE INDEX audit_events_actor ON registry.audit_events (tenant_id, actor_id, id)",
    "CREATE INDEX audit_events_risky ON registry.audit_events (tenant_id, id) WHERE risk >= 3",
    (
        "CREATE INDEX audit_events_undone ON registry.audit_events (tenant_id, id) "
        "WHERE outcome <> 'done'"
    ),
)

HEADS = ("registry.audit_heads", "registry.platform_audit_head")

# Whoever may write a head may move it on, and not back: not the service itself either.
FORWARD = """
    CREATE FUNCTION registry.audit_forward() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        IF TG_OP = 'INSERT' AND NEW.seq <> 0 OR TG_OP = 'UPDATE' AND NEW.seq <= OLD.seq THEN
            RAISE 'the head of an audit log begins at 0 and goes forward'
                USING ERRCODE = 'check_violation', CONSTRAINT = 'audit_forward';
        END IF;
        RETURN NEW;
    END $$"""

# The last place of each log in a month, by the index alone: one step a tenant, however many events.
_LAST_OF_TENANTS = """
                        'WITH RECURSIVE logs AS ('
                        '(SELECT tenant_id FROM registry.%1$I ORDER BY tenant_id LIMIT 1) UNION ALL'
                        ' SELECT (SELECT e.tenant_id FROM registry.%1$I e'
                        ' WHERE e.tenant_id > logs.tenant_id ORDER BY e.tenant_id LIMIT 1)'
                        ' FROM logs WHERE logs.tenant_id IS NOT NULL)'
                        ' SELECT EXISTS (SELECT FROM logs WHERE ('
                        'SELECT max(e.seq) FROM registry.%1$I e WHERE e.tenant_id = logs.tenant_id)'
                        ' > coalesce((SELECT max(a.seq) FROM registry.audit_anchors a'
                        ' WHERE a.tenant_id = logs.tenant_id AND a.pruned), 0))'"""
_LAST_OF_PLATFORM = """
                        'SELECT (SELECT max(seq) FROM registry.%1$I)'
                        ' > coalesce((SELECT max(seq) FROM registry.platform_audit_anchors'
                        ' WHERE pruned), 0)'"""

# A month of a log goes only when a signed anchor stands for its last event. FORCE blinds the owner,
# too, so it is lifted from the month, which goes anyway, while the owner looks.
ANCHORED = f"""
            IF relation IN ('audit_events', 'platform_audit_events') THEN
                DECLARE
                    asked text := CASE relation WHEN 'audit_events' THEN {_LAST_OF_TENANTS}
                        ELSE {_LAST_OF_PLATFORM} END;
                    unanchored boolean;
                BEGIN
                    EXECUTE format('ALTER TABLE registry.%I NO FORCE ROW LEVEL SECURITY', child);
                    EXECUTE format(asked, child) INTO unanchored;
                    EXECUTE format('ALTER TABLE registry.%I FORCE ROW LEVEL SECURITY', child);
                    IF unanchored THEN
                        RAISE 'not anchored' USING ERRCODE = 'object_not_in_prerequisite_state';
                    END IF;
                END;
            END IF;
"""


def guard() -> None:
    """Let heads of logs go forward alone, and the owner see how far each log is anchored."""
    op.execute(
        "CREATE POLICY owner_looks ON registry.audit_anchors FOR SELECT TO CURRENT_USER"
        " USING (true)"
    )
    op.execute(FORWARD)
    for table in HEADS:
        op.execute(
            f"CREATE TRIGGER audit_forward BEFORE INSERT OR UPDATE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION registry.audit_forward()"
        )


def drop_guard() -> None:
    """Undo `guard`, once the tables are gone."""
    op.execute("DROP FUNCTION registry.audit_forward")
