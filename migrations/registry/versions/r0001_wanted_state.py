"""The registry's first tables: tenants, access, secrets, wanted objects, revisions, feed, audit."""

from alembic import context, op

from migrations import partitions
from migrations.tenancy import Tenancy, drop

revision = "r0001"
down_revision = None

TIME_TABLES = ("audit_events",)

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
            last4 text NOT NULL,
            metadata jsonb NOT NULL,
            created_by text NOT NULL,
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
    "registry.tenant_roles": (
        "SELECT, INSERT, UPDATE, DELETE",
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
        "SELECT, INSERT, UPDATE, DELETE",
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
        ALL,
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
        APPEND,
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
        ALL,
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
        ALL,
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
        ALL,
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
        ALL,
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
            kind text NOT NULL CHECK (kind IN ('revision')),
            revision bigint NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (tenant_id, seq)
        )""",
    ),
    "registry.audit_events": (
        APPEND,
        """
        CREATE TABLE registry.audit_events (
            tenant_id uuid NOT NULL,
            id uuid NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            actor_id uuid NOT NULL,
            actor_kind text NOT NULL,
            actor_name text NOT NULL,
            actor_role text NOT NULL,
            address text NOT NULL,
            user_agent text NOT NULL,
            action text NOT NULL,
            kind text NOT NULL,
            object text NOT NULL,
            object_id uuid NOT NULL,
            fields jsonb NOT NULL,
            risk smallint NOT NULL CHECK (risk BETWEEN 1 AND 4),
            revision bigint NOT NULL,
            request_id text NOT NULL,
            source text NOT NULL,
            commit text NOT NULL,
            file text NOT NULL,
            line integer NOT NULL,
            PRIMARY KEY (tenant_id, id)
        ) PARTITION BY RANGE (id)""",
    ),
}

INDEXES = (
    # Authentication gathers one principal's grants over all tenants.
    (
        "CREATE INDEX role_bindings_subject "
        "ON registry.role_bindings (principal_kind, issuer, subject)"
    ),
    "CREATE INDEX api_keys_principal ON registry.api_keys (principal_id)",
    # The feed is read in the order in which transactions become visible.
    "CREATE INDEX feed_position ON registry.feed (xid, seq)",
    "CREATE INDEX request_answers_age ON registry.request_answers (tenant_id, created_at)",
)

ROLES = {
    "VIEWER": (1, "Reads everything of a tenant but its audit log"),
    "MANAGER": (2, "Reads, runs, plans and reports"),
    "ADMIN": (3, "Does everything in a tenant"),
    "SUPER_ADMIN": (4, "Does everything in every tenant, and makes tenants"),
    "CONFIG_SOURCE": (50, "Plans and applies configuration, and makes tenants by it"),
    "EXECUTOR": (100, "The executor service itself"),
}
# In every tenant, one a call, and each time with a reason.
NEEDS_REASON = frozenset({"SUPER_ADMIN"})
READ = (
    *("tenants.read", "integrations.read", "credentials.read", "config.read", "executions.read"),
    "lanes.read",
)
MANAGE = (*READ, "connectors.run", "config.plan", "audit.read")
ADMINISTER = (*MANAGE, "config.apply", "lanes.pause")
GRANTED = {
    "VIEWER": READ,
    "MANAGER": MANAGE,
    "ADMIN": ADMINISTER,
    "SUPER_ADMIN": (*ADMINISTER, "tenants.create", "providers.switch"),
    "CONFIG_SOURCE": (
        "tenants.read",
        "tenants.create",
        "config.read",
        "config.plan",
        "config.apply",
    ),
    "EXECUTOR": (
        "config.read",
        "feed.watch",
        "projections.report",
        "credentials.resolve",
        "keys.lease",
        "principals.authenticate",
    ),
}
PERMISSIONS = {
    "tenants.read": "See a tenant",
    "tenants.create": "Make a tenant by a Tenant document",
    "integrations.read": "See integrations",
    "credentials.read": "See credentials, masked",
    "config.read": "See wanted state and its revisions",
    "config.plan": "See what a change would do",
    "config.apply": "Change wanted state",
    "connectors.run": "Run a connector",
    "executions.read": "See executions and their steps, masked",
    "lanes.read": "See lanes, and why one does not move",
    "lanes.pause": "Pause and resume a lane",
    "providers.switch": "Stop and start the work of every tenant with a provider",
    "audit.read": "See the audit log",
    "feed.watch": "Follow what changes in every tenant",
    "projections.report": "Say which revision the executor works by",
    "credentials.resolve": "Open a credential",
    "keys.lease": "Lease a key derived from a tenant's",
    "principals.authenticate": "Ask who a credential belongs to",
}


def upgrade() -> None:
    """Make every table, protect it, and seed the built-in roles."""
    tenancy = Tenancy("registry", context.config.attributes["roles"])
    tenancy.open_schema("registry")
    tenancy.make(GLOBAL, TENANT)
    for statement in INDEXES:
        op.execute(statement)
    tenancy.by_month("registry", TIME_TABLES)
    op.execute("INSERT INTO registry.deployment DEFAULT VALUES")
    _seed_roles()


def downgrade() -> None:
    """Drop the schema's tables, the newest first."""
    drop(GLOBAL, TENANT)
    partitions.drop("registry")


def _seed_roles() -> None:
    for role, (level, description) in ROLES.items():
        op.execute(
            f"INSERT INTO registry.roles VALUES "
            f"('{role}', {level}, {role in NEEDS_REASON}, $${description}$$)"
        )
    for permission, description in PERMISSIONS.items():
        op.execute(f"INSERT INTO registry.permissions VALUES ('{permission}', $${description}$$)")
    for role, permissions in GRANTED.items():
        for permission in permissions:
            op.execute(f"INSERT INTO registry.role_permissions VALUES ('{role}', '{permission}')")
