"""The registry's first tables: tenants, access, secrets, wanted objects, revisions, feed, audit."""

from alembic import context, op

from migrations import partitions
from migrations.registry import access, audit, built_in_roles
from migrations.tenancy import Tenancy, drop

revision = "r0001"
down_revision = None

TIME_TABLES = ("api_key_usage", *audit.TIME_TABLES)

GLOBAL = {
    "registry.deployment": """
        CREATE TABLE registry.deployment (
            singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
            incarnation uuid NOT NULL DEFAULT gen_random_uuid(),
            created_at timestamptz NOT NULL DEFAULT now()
        )""",
    "registry.principals": """
        CREATE TABLE registry.principals (
            principal_id uuid PRIMARY KEY,
            kind text NOT NULL CHECK (kind IN ('user', 'service', 'source')),
            -- Who says so: a token's issuer, `mtls`, or nobody but us.
            issuer text NOT NULL,
            subject text NOT NULL,
            display_name text NOT NULL,
            email text NOT NULL DEFAULT '',
            disabled_at timestamptz,
            created_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT principals_identity_key UNIQUE (kind, issuer, subject)
        )""",
    "registry.roles": """
        CREATE TABLE registry.roles (
            role text PRIMARY KEY,
            level smallint NOT NULL UNIQUE,
            needs_reason boolean NOT NULL,
            description text NOT NULL
        )""",
    "registry.permissions": """
        CREATE TABLE registry.permissions (
            permission text PRIMARY KEY,
            description text NOT NULL
        )""",
    "registry.role_permissions": """
        CREATE TABLE registry.role_permissions (
            role text NOT NULL REFERENCES registry.roles,
            permission text NOT NULL REFERENCES registry.permissions,
            PRIMARY KEY (role, permission)
        )""",
    "registry.platform_grants": """
        CREATE TABLE registry.platform_grants (
            principal_id uuid NOT NULL REFERENCES registry.principals,
            role text NOT NULL REFERENCES registry.roles,
            kinds text[] NOT NULL DEFAULT '{}',
            sources text[] NOT NULL DEFAULT '{*}',
            created_by text NOT NULL DEFAULT '',
            created_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (principal_id, role)
        )""",
    "registry.api_keys": """
        CREATE TABLE registry.api_keys (
            key_id text PRIMARY KEY,
            principal_id uuid NOT NULL REFERENCES registry.principals,
            name text NOT NULL,
            digest bytea NOT NULL,
            scopes text[] NOT NULL,
            address_ranges text[] NOT NULL,
            -- What the text begins and ends with, so that people can tell keys apart.
            environment text NOT NULL,
            last4 text NOT NULL,
            metadata jsonb NOT NULL,
            created_by text NOT NULL,
            -- Who answers for what is done with it: the principal itself, or who made it for them.
            created_by_id uuid NOT NULL REFERENCES registry.principals,
            expires_at timestamptz,
            revoked_at timestamptz CHECK (revoked_at >= created_at),
            revoked_by text NOT NULL DEFAULT '',
            revoke_reason text NOT NULL DEFAULT '',
            last_used_at timestamptz,
            created_at timestamptz NOT NULL DEFAULT now()
        )""",
    "registry.key_versions": """
        CREATE TABLE registry.key_versions (
            version integer PRIMARY KEY,
            proof bytea NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now()
        )""",
}

OBJECT = """
            name text NOT NULL,
            labels jsonb NOT NULL,
            annotations jsonb NOT NULL,
            revision bigint NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now(),
"""

ALL = "SELECT, INSERT, UPDATE"
WANTED = "SELECT, INSERT, UPDATE, DELETE"
APPEND = "SELECT, INSERT"

TENANT: dict[str, tuple[str, str]] = {
    "registry.tenants": (
        ALL,
        """
        CREATE TABLE registry.tenants (
            tenant_id uuid PRIMARY KEY,
            slug text NOT NULL CONSTRAINT tenants_slug_key UNIQUE
                CHECK (slug ~ '^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$'),
            display_name text NOT NULL,
            state text NOT NULL CHECK (state IN ('active', 'draining', 'purged')),
            enabled boolean NOT NULL,
            limits jsonb NOT NULL,
            labels jsonb NOT NULL,
            annotations jsonb NOT NULL,
            revision bigint NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now()
        )""",
    ),
    "registry.tenant_status": (
        ALL,
        """
        CREATE TABLE registry.tenant_status (
            tenant_id uuid PRIMARY KEY REFERENCES registry.tenants,
            projected_revision bigint NOT NULL,
            reported_at timestamptz NOT NULL DEFAULT now()
        )""",
    ),
    # Why a tenant goes, how far it has gone, and once it is purged the proof of it.
    "registry.tenant_tombstones": (
        ALL,
        """
        CREATE TABLE registry.tenant_tombstones (
            tenant_id uuid PRIMARY KEY REFERENCES registry.tenants,
            slug text NOT NULL,
            actor_id uuid NOT NULL,
            actor_kind text NOT NULL,
            actor_name text NOT NULL,
            reason text NOT NULL,
            forced boolean NOT NULL,
            executor_rows jsonb,
            registry_rows jsonb NOT NULL DEFAULT '{}',
            created_at timestamptz NOT NULL DEFAULT now(),
            reported_at timestamptz,
            purged_at timestamptz,
            CHECK ((executor_rows IS NULL) = (reported_at IS NULL))
        )""",
    ),
    "registry.tenant_roles": (
        WANTED,
        f"""
        CREATE TABLE registry.tenant_roles (
            tenant_id uuid NOT NULL REFERENCES registry.tenants,
            role_id uuid NOT NULL,
            {OBJECT}
            description text NOT NULL,
            permissions text[] NOT NULL,
            PRIMARY KEY (tenant_id, role_id),
            CONSTRAINT tenant_roles_name_key UNIQUE (tenant_id, name)
        )""",
    ),
    "registry.role_bindings": (
        WANTED,
        f"""
        CREATE TABLE registry.role_bindings (
            tenant_id uuid NOT NULL REFERENCES registry.tenants,
            binding_id uuid NOT NULL,
            {OBJECT}
            -- A built-in role in capitals, or one of the tenant's own by name.
            role text NOT NULL,
            principal_kind text NOT NULL CHECK (principal_kind IN ('user', 'service', 'source')),
            issuer text NOT NULL,
            subject text NOT NULL,
            kinds text[] NOT NULL,
            sources text[] NOT NULL,
            PRIMARY KEY (tenant_id, binding_id),
            CONSTRAINT role_bindings_name_key UNIQUE (tenant_id, name)
        )""",
    ),
    "registry.data_keys": (
        APPEND,
        """
        CREATE TABLE registry.data_keys (
            tenant_id uuid NOT NULL REFERENCES registry.tenants,
            data_key_id uuid NOT NULL,
            key_version integer NOT NULL REFERENCES registry.key_versions,
            wrapped bytea NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (tenant_id, data_key_id)
        )""",
    ),
    "registry.credentials": (
        WANTED,
        f"""
        CREATE TABLE registry.credentials (
            tenant_id uuid NOT NULL REFERENCES registry.tenants,
            credential_id uuid NOT NULL,
            {OBJECT}
            type text NOT NULL CHECK (type IN ('api_key', 'bearer', 'basic', 'webhook_secret')),
            description text NOT NULL,
            version integer NOT NULL CHECK (version > 0),
            PRIMARY KEY (tenant_id, credential_id),
            CONSTRAINT credentials_name_key UNIQUE (tenant_id, name)
        )""",
    ),
    "registry.credential_versions": (
        "SELECT, INSERT, DELETE",
        """
        CREATE TABLE registry.credential_versions (
            tenant_id uuid NOT NULL,
            credential_id uuid NOT NULL,
            version integer NOT NULL CHECK (version > 0),
            version_id uuid NOT NULL,
            data_key_id uuid NOT NULL,
            wrapped_key bytea NOT NULL,
            sealed bytea NOT NULL,
            fingerprints jsonb NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (tenant_id, credential_id, version),
            CONSTRAINT credential_versions_version_id_key UNIQUE (tenant_id, version_id),
            FOREIGN KEY (tenant_id, credential_id) REFERENCES registry.credentials,
            FOREIGN KEY (tenant_id, data_key_id) REFERENCES registry.data_keys
        )""",
    ),
    "registry.integrations": (
        WANTED,
        f"""
        CREATE TABLE registry.integrations (
            tenant_id uuid NOT NULL REFERENCES registry.tenants,
            integration_id uuid NOT NULL,
            {OBJECT}
            display_name text NOT NULL,
            provider text NOT NULL,
            category text NOT NULL,
            environment text NOT NULL
                CHECK (environment IN ('production', 'sandbox', 'development')),
            base_url text NOT NULL,
            is_primary boolean NOT NULL,
            is_active boolean NOT NULL,
            config jsonb NOT NULL,
            credential_id uuid,
            PRIMARY KEY (tenant_id, integration_id),
            CONSTRAINT integrations_name_key UNIQUE (tenant_id, name),
            -- At most one primary; looked at when all is written, so that two may change places.
            CONSTRAINT integrations_primary_key EXCLUDE USING btree
                (tenant_id WITH =, provider WITH =, environment WITH =) WHERE (is_primary)
                DEFERRABLE INITIALLY DEFERRED,
            FOREIGN KEY (tenant_id, credential_id) REFERENCES registry.credentials
                ON DELETE RESTRICT
        )""",
    ),
    "registry.connectors": (
        WANTED,
        f"""
        CREATE TABLE registry.connectors (
            tenant_id uuid NOT NULL REFERENCES registry.tenants,
            connector_id uuid NOT NULL,
            {OBJECT}
            display_name text NOT NULL,
            description text NOT NULL,
            is_active boolean NOT NULL,
            steps jsonb NOT NULL CHECK (jsonb_typeof(steps) = 'array'),
            lane jsonb NOT NULL,
            schedule jsonb NOT NULL,
            timeout text,
            max_retries integer NOT NULL CHECK (max_retries >= 0),
            output jsonb NOT NULL CHECK (jsonb_typeof(output) = 'array'),
            PRIMARY KEY (tenant_id, connector_id),
            CONSTRAINT connectors_name_key UNIQUE (tenant_id, name)
        )""",
    ),
    "registry.webhook_endpoints": (
        WANTED,
        f"""
        CREATE TABLE registry.webhook_endpoints (
            tenant_id uuid NOT NULL REFERENCES registry.tenants,
            endpoint_id uuid NOT NULL,
            {OBJECT}
            direction text NOT NULL CHECK (direction IN ('INBOUND')),
            is_active boolean NOT NULL,
            integration_id uuid NOT NULL,
            secret_id uuid NOT NULL,
            PRIMARY KEY (tenant_id, endpoint_id),
            CONSTRAINT webhook_endpoints_name_key UNIQUE (tenant_id, name),
            FOREIGN KEY (tenant_id, integration_id) REFERENCES registry.integrations
                ON DELETE RESTRICT,
            FOREIGN KEY (tenant_id, secret_id) REFERENCES registry.credentials
                ON DELETE RESTRICT
        )""",
    ),
    "registry.subscriptions": (
        WANTED,
        f"""
        CREATE TABLE registry.subscriptions (
            tenant_id uuid NOT NULL REFERENCES registry.tenants,
            subscription_id uuid NOT NULL,
            {OBJECT}
            is_active boolean NOT NULL,
            endpoint_id uuid NOT NULL,
            connector_id uuid NOT NULL,
            event_types text[] NOT NULL,
            filter text NOT NULL,
            PRIMARY KEY (tenant_id, subscription_id),
            CONSTRAINT subscriptions_name_key UNIQUE (tenant_id, name),
            FOREIGN KEY (tenant_id, endpoint_id) REFERENCES registry.webhook_endpoints
                ON DELETE RESTRICT,
            FOREIGN KEY (tenant_id, connector_id) REFERENCES registry.connectors
                ON DELETE RESTRICT
        )""",
    ),
    "registry.review_policies": (
        WANTED,
        f"""
        CREATE TABLE registry.review_policies (
            tenant_id uuid NOT NULL REFERENCES registry.tenants,
            policy_id uuid NOT NULL,
            {OBJECT}
            min_risk text NOT NULL CHECK (min_risk IN ('MEDIUM', 'HIGH', 'CRITICAL')),
            kinds text[] NOT NULL,
            approvals integer NOT NULL CHECK (approvals BETWEEN 1 AND 5),
            expires text NOT NULL,
            allow_self_approval boolean NOT NULL,
            is_active boolean NOT NULL,
            PRIMARY KEY (tenant_id, policy_id),
            CONSTRAINT review_policies_name_key UNIQUE (tenant_id, name)
        )""",
    ),
    "registry.pending_revisions": (
        ALL,
        """
        CREATE TABLE registry.pending_revisions (
            tenant_id uuid NOT NULL REFERENCES registry.tenants,
            pending_id uuid NOT NULL,
            state text NOT NULL
                CHECK (state IN ('pending', 'applied', 'rejected', 'expired', 'stale')),
            base_revision bigint NOT NULL,
            plan_hash text NOT NULL,
            plan jsonb NOT NULL,
            risk smallint NOT NULL CHECK (risk BETWEEN 1 AND 4),
            source text NOT NULL,
            commit text NOT NULL,
            author_id uuid NOT NULL,
            author jsonb NOT NULL,
            -- Who made the key that the author submitted with, where that was somebody else.
            author_made_by uuid,
            policies text[] NOT NULL,
            approvals_needed integer NOT NULL CHECK (approvals_needed BETWEEN 1 AND 5),
            self_approval boolean NOT NULL,
            data_key_id uuid NOT NULL,
            wrapped_key bytea,
            sealed bytea,
            created_at timestamptz NOT NULL DEFAULT now(),
            expires_at timestamptz NOT NULL,
            ended_at timestamptz,
            ended_by text NOT NULL DEFAULT '',
            note text NOT NULL DEFAULT '',
            revision bigint NOT NULL DEFAULT 0,
            PRIMARY KEY (tenant_id, pending_id),
            FOREIGN KEY (tenant_id, data_key_id) REFERENCES registry.data_keys,
            -- What no longer waits keeps nothing of its documents, nor the key to them.
            CONSTRAINT pending_revisions_shredded CHECK (
                (state = 'pending') = (wrapped_key IS NOT NULL)
                AND (state = 'pending') = (sealed IS NOT NULL)
                AND (state = 'pending') = (ended_at IS NULL)
            )
        )""",
    ),
    "registry.pending_approvals": (
        APPEND,
        """
        CREATE TABLE registry.pending_approvals (
            tenant_id uuid NOT NULL,
            pending_id uuid NOT NULL,
            principal_id uuid NOT NULL,
            principal_name text NOT NULL,
            note text NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (tenant_id, pending_id, principal_id),
            FOREIGN KEY (tenant_id, pending_id) REFERENCES registry.pending_revisions
        )""",
    ),
    "registry.config_ownership": (
        "SELECT, INSERT, UPDATE, DELETE",
        """
        CREATE TABLE registry.config_ownership (
            tenant_id uuid NOT NULL REFERENCES registry.tenants,
            kind text NOT NULL,
            name text NOT NULL,
            source text NOT NULL,
            fields text[] NOT NULL,
            PRIMARY KEY (tenant_id, kind, name, source)
        )""",
    ),
    "registry.config_revisions": (
        APPEND,
        """
        CREATE TABLE registry.config_revisions (
            tenant_id uuid NOT NULL REFERENCES registry.tenants,
            revision bigint NOT NULL CHECK (revision > 0),
            source text NOT NULL,
            principal_name text NOT NULL,
            plan_hash text NOT NULL,
            commit text NOT NULL,
            created integer NOT NULL,
            updated integer NOT NULL,
            deleted integer NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (tenant_id, revision)
        )""",
    ),
    "registry.request_answers": (
        "SELECT, INSERT, DELETE",
        """
        CREATE TABLE registry.request_answers (
            tenant_id uuid NOT NULL REFERENCES registry.tenants,
            principal_id uuid NOT NULL,
            method text NOT NULL,
            request_id uuid NOT NULL,
            request_hash bytea NOT NULL,
            answer bytea NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT request_answers_pkey
                PRIMARY KEY (tenant_id, principal_id, method, request_id)
        )""",
    ),
    "registry.feed": (
        APPEND,
        """
        CREATE TABLE registry.feed (
            tenant_id uuid NOT NULL,
            seq bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
            xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
            kind text NOT NULL CHECK (kind IN ('revision', 'tenant', 'notice')),
            revision bigint NOT NULL,
            -- What a notice is about: an audit event's name.
            subject text NOT NULL DEFAULT '',
            created_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (tenant_id, seq)
        )""",
    ),
}

INDEXES = (
    # Authentication gathers one principal's grants over all tenants.
    (
        "CREATE INDEX role_bindings_subject "
        "ON registry.role_bindings (principal_kind, issuer, subject)"
    ),
    "CREATE INDEX api_keys_principal ON registry.api_keys (principal_id)",
    # A leader looks for tenants that are to be purged.
    (
        "CREATE INDEX tenant_tombstones_open ON registry.tenant_tombstones (tenant_id) "
        "WHERE purged_at IS NULL"
    ),
    # The feed is read in the order in which transactions become visible.
    "CREATE INDEX feed_position ON registry.feed (xid, seq)",
    "CREATE INDEX request_answers_age ON registry.request_answers (tenant_id, created_at)",
    (
        "CREATE UNIQUE INDEX pending_revisions_same_plan "
        "ON registry.pending_revisions (tenant_id, plan_hash, base_revision) "
        "WHERE state = 'pending'"
    ),
    # A leader looks for what nobody approved in time, in any tenant.
    (
        "CREATE INDEX pending_revisions_due "
        "ON registry.pending_revisions (expires_at) WHERE state = 'pending'"
    ),
)


def upgrade() -> None:
    """Make every table, protect it, and seed the built-in roles."""
    tenancy = Tenancy("registry", context.config.attributes["roles"])
    tenancy.open_schema("registry")
    tenancy.make(GLOBAL, TENANT)
    tenancy.make(access.GLOBAL, access.TENANT)
    tenancy.make(audit.GLOBAL, audit.TENANT)
    audit.guard()
    for statement in (*INDEXES, *access.INDEXES, *audit.INDEXES):
        op.execute(statement)
    tenancy.by_month("registry", TIME_TABLES, audit.ANCHORED)
    op.execute("INSERT INTO registry.deployment DEFAULT VALUES")
    built_in_roles.seed()


def downgrade() -> None:
    """Drop the schema's tables, the newest first."""
    drop(GLOBAL, TENANT, access.GLOBAL, access.TENANT, audit.GLOBAL, audit.TENANT)
    audit.drop_guard()
    partitions.drop("registry")
