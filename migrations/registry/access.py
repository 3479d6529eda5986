"""The tables by which access is managed: staff, what tenants own, switches, usage, kept answers."""

GLOBAL = {
    "registry.staff": """
        CREATE TABLE registry.staff (
            principal_id uuid PRIMARY KEY REFERENCES registry.principals,
            role text NOT NULL CHECK (role IN ('developer', 'admin', 'owner')),
            -- Flags: permissions of the platform by name, beside those of the role.
            permissions jsonb NOT NULL CHECK (jsonb_typeof(permissions) = 'object'),
            created_by text NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now()
        )""",
    "registry.platform_answers": """
        CREATE TABLE registry.platform_answers (
            principal_id uuid NOT NULL,
            method text NOT NULL,
            request_id uuid NOT NULL,
            request_hash bytea NOT NULL,
            answer bytea NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT platform_answers_pkey PRIMARY KEY (principal_id, method, request_id)
        )""",
    # The id says when the bucket began and, by a hash, what is counted in it: a row a bucket.
    "registry.api_key_usage": """
        CREATE TABLE registry.api_key_usage (
            id uuid PRIMARY KEY,
            key_id text NOT NULL,
            method text NOT NULL,
            address text NOT NULL,
            user_agent text NOT NULL,
            count bigint NOT NULL CHECK (count > 0),
            bucket_at timestamptz NOT NULL
        ) PARTITION BY RANGE (id)""",
}

TENANT = {
    "registry.tenant_principals": (
        "SELECT",
        """
        CREATE TABLE registry.tenant_principals (
            tenant_id uuid NOT NULL REFERENCES registry.tenants,
            principal_id uuid NOT NULL REFERENCES registry.principals,
            created_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (tenant_id, principal_id)
        )""",
    ),
    "registry.tenant_switches": (
        "SELECT",
        """
        CREATE TABLE registry.tenant_switches (
            tenant_id uuid NOT NULL REFERENCES registry.tenants,
            principal_id uuid NOT NULL REFERENCES registry.principals,
            switched_at timestamptz NOT NULL,
            PRIMARY KEY (tenant_id, principal_id)
        )""",
    ),
}

INDEXES = (
    # Whose a principal is.
    "CREATE INDEX tenant_principals_principal ON registry.tenant_principals (principal_id)",
    "CREATE INDEX tenant_switches_principal ON registry.tenant_switches (principal_id)",
    "CREATE INDEX api_key_usage_key ON registry.api_key_usage (key_id, id)",
    # Those of idle tenants are forgotten, too.
    "CREATE INDEX request_answers_old ON registry.request_answers (created_at)",
    "CREATE INDEX platform_answers_old ON registry.platform_answers (created_at)",
)
