"""The tables of keys, credentials and connections, as revision r0002 makes and widens them."""

OBJECT = """
            name text NOT NULL,
            labels jsonb NOT NULL,
            annotations jsonb NOT NULL,
            revision bigint NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now(),
"""

GLOBAL = {
    # The registry processes that run, and the versions each can open.
    "registry.key_holders": """
        CREATE TABLE registry.key_holders (
            holder_id uuid PRIMARY KEY,
            host text NOT NULL,
            versions integer[] NOT NULL,
            seen_at timestamptz NOT NULL DEFAULT now()
        )""",
    # Pairs that secrets in Git are sealed to; an old one opens for as long as the deployment lives.
    "registry.sealing_keys": """
        CREATE TABLE registry.sealing_keys (
            version integer PRIMARY KEY,
            public_key bytea NOT NULL,
            key_version integer NOT NULL REFERENCES registry.key_versions,
            wrapped bytea NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now()
        )""",
}

WANTED = "SELECT, INSERT, UPDATE, DELETE"

TENANT: dict[str, tuple[str, str]] = {
    "registry.venues": (
        WANTED,
        f"""
        CREATE TABLE registry.venues (
            tenant_id uuid NOT NULL REFERENCES registry.tenants,
            venue_id uuid NOT NULL,
            {OBJECT}
            display_name text NOT NULL,
            PRIMARY KEY (tenant_id, venue_id),
            CONSTRAINT venues_name_key UNIQUE (tenant_id, name)
        )""",
    ),
    "registry.connections": (
        WANTED,
        f"""
        CREATE TABLE registry.connections (
            tenant_id uuid NOT NULL REFERENCES registry.tenants,
            connection_id uuid NOT NULL,
            {OBJECT}
            integration_id uuid NOT NULL,
            credential_id uuid NOT NULL,
            venue_id uuid,
            "user" text NOT NULL,
            external_account_id text NOT NULL,
            scopes text[] NOT NULL,
            provider_metadata jsonb NOT NULL,
            is_active boolean NOT NULL,
            -- Whose account it is: the provider, and the app it was connected by.
            provider text NOT NULL,
            app_id uuid,
            PRIMARY KEY (tenant_id, connection_id),
            CONSTRAINT connections_name_key UNIQUE (tenant_id, name),
            -- Looked at when all is written, so that two may change places.
            CONSTRAINT connections_account_key EXCLUDE USING btree
                (tenant_id WITH =, provider WITH =, app_id WITH =, external_account_id WITH =)
                WHERE (external_account_id <> '') DEFERRABLE INITIALLY DEFERRED,
            FOREIGN KEY (tenant_id, integration_id) REFERENCES registry.integrations
                ON DELETE RESTRICT,
            FOREIGN KEY (tenant_id, credential_id) REFERENCES registry.credentials
                ON DELETE RESTRICT,
            FOREIGN KEY (tenant_id, venue_id) REFERENCES registry.venues ON DELETE RESTRICT
        )""",
    ),
    # How a credential stands, which is no part of what is wanted.
    "registry.credential_status": (
        WANTED,
        """
        CREATE TABLE registry.credential_status (
            tenant_id uuid NOT NULL,
            credential_id uuid NOT NULL,
            status text NOT NULL DEFAULT 'unknown' CHECK (status IN (
                'unknown', 'valid', 'invalid', 'expired', 'reconnect', 'revoked', 'uncertain')),
            reason text NOT NULL DEFAULT '',
            validated_at timestamptz,
            used_at timestamptz,
            rate_limit jsonb NOT NULL DEFAULT '{}',
            -- When the leader asks the provider for new tokens; null: never.
            refresh_at timestamptz,
            failures integer NOT NULL DEFAULT 0,
            cool_until timestamptz,
            -- Who asks now: their lease, and a number that grows with each.
            lease_id uuid,
            lease_until timestamptz,
            fence bigint NOT NULL DEFAULT 0,
            -- The version whose token a call was begun with that nobody has told the end of.
            intent_version integer,
            -- When its rotation is due, and when it is to be told that it will end.
            rotate_at timestamptz,
            warn_at timestamptz,
            -- What a notice was made of already.
            noticed text[] NOT NULL DEFAULT '{}',
            revoked_at timestamptz,
            revoked_by text NOT NULL DEFAULT '',
            revoke_reason text NOT NULL DEFAULT '',
            PRIMARY KEY (tenant_id, credential_id),
            FOREIGN KEY (tenant_id, credential_id) REFERENCES registry.credentials,
            CHECK ((lease_id IS NULL) = (lease_until IS NULL))
        )""",
    ),
    "registry.credential_uses": (
        "SELECT, INSERT, UPDATE, DELETE",
        """
        CREATE TABLE registry.credential_uses (
            tenant_id uuid NOT NULL,
            credential_id uuid NOT NULL,
            bucket_at timestamptz NOT NULL,
            uses bigint NOT NULL CHECK (uses >= 0),
            errors bigint NOT NULL CHECK (errors >= 0),
            PRIMARY KEY (tenant_id, credential_id, bucket_at)
        )""",
    ),
    # An authorisation under way: it exists before its token does.
    "registry.oauth_flows": (
        WANTED,
        """
        CREATE TABLE registry.oauth_flows (
            tenant_id uuid NOT NULL REFERENCES registry.tenants,
            flow_id uuid NOT NULL,
            integration_id uuid NOT NULL,
            -- Whose doing the connection will be.
            principal_id uuid NOT NULL,
            actor jsonb NOT NULL,
            link_id uuid,
            -- Hashes of what must come back: the state, and what the visitor's browser holds.
            state_hash bytea NOT NULL,
            browser_hash bytea,
            wishes jsonb NOT NULL,
            data_key_id uuid NOT NULL,
            wrapped_key bytea NOT NULL,
            sealed bytea NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            expires_at timestamptz NOT NULL,
            used_at timestamptz,
            PRIMARY KEY (tenant_id, flow_id),
            FOREIGN KEY (tenant_id, data_key_id) REFERENCES registry.data_keys
        )""",
    ),
    "registry.connect_links": (
        WANTED,
        """
        CREATE TABLE registry.connect_links (
            tenant_id uuid NOT NULL REFERENCES registry.tenants,
            link_id uuid NOT NULL,
            integration_id uuid NOT NULL,
            principal_id uuid NOT NULL,
            actor jsonb NOT NULL,
            wishes jsonb NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            expires_at timestamptz NOT NULL,
            used_at timestamptz,
            PRIMARY KEY (tenant_id, link_id)
        )""",
    ),
}

# Tables whose columns change; a backfill of theirs must see every row.
WIDENED = (
    *("registry.data_keys", "registry.credentials", "registry.credential_versions"),
    *("registry.integrations", "registry.request_answers"),
)
STATES = "'pending', 'active', 'decrypt_only', 'disabled', 'destroyed'"
TYPES = (
    "'api_key', 'bearer', 'basic', 'webhook_secret', 'oauth2', 'oauth2_client', 'jwt_key', "
    "'client_certificate'"
)
WIDEN = (
    f"""ALTER TABLE registry.key_versions
        ADD state text NOT NULL DEFAULT 'active' CHECK (state IN ({STATES})),
        ADD provider text NOT NULL DEFAULT '',
        ADD reference text NOT NULL DEFAULT '',
        ADD wrapped bytea NOT NULL DEFAULT '',
        ADD wraps bigint NOT NULL DEFAULT 0,
        ADD changed_at timestamptz NOT NULL DEFAULT now()""",
    """ALTER TABLE registry.data_keys
        ADD state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'retired', 'shredded')),
        ADD wraps bigint NOT NULL DEFAULT 0,
        ADD retired_at timestamptz,
        ALTER wrapped DROP NOT NULL""",
    f"""ALTER TABLE registry.credentials
        DROP CONSTRAINT credentials_type_check,
        ADD CONSTRAINT credentials_type_check CHECK (type IN ({TYPES})),
        DROP CONSTRAINT credentials_version_check,
        ADD CONSTRAINT credentials_version_check CHECK (version >= 0),
        ADD environment text NOT NULL DEFAULT 'production'
            CHECK (environment IN ('production', 'sandbox', 'development')),
        ADD venue_id uuid,
        ADD provider text NOT NULL DEFAULT '',
        ADD key_type text NOT NULL DEFAULT '',
        ADD app_id uuid,
        ADD "grant" text NOT NULL DEFAULT '' CHECK ("grant" IN
            ('', 'authorization_code', 'client_credentials', 'jwt_bearer')),
        ADD scopes text[] NOT NULL DEFAULT '{{}}',
        ADD expires text NOT NULL DEFAULT '',
        ADD expires_at timestamptz,
        ADD allowed_endpoints text[] NOT NULL DEFAULT '{{}}',
        ADD allowed_ranges text[] NOT NULL DEFAULT '{{}}',
        ADD rotation jsonb NOT NULL DEFAULT '{{"every": null, "overlap": "86400s"}}',
        ADD config jsonb NOT NULL DEFAULT '{{}}',
        ADD provider_metadata jsonb NOT NULL DEFAULT '{{}}',
        ADD notes text NOT NULL DEFAULT '',
        -- Fingerprints of the values that were declared: what the provider gives later is no drift.
        ADD declared jsonb NOT NULL DEFAULT '{{}}',
        ADD created_by text NOT NULL DEFAULT ''""",
    """ALTER TABLE registry.credential_versions
        -- The version's own key has an id of its own, which is in what its value is bound to.
        ADD key_id uuid,
        ADD origin text NOT NULL DEFAULT 'declared' CHECK (origin IN
            ('declared', 'generated', 'rotated', 'oauth', 'refresh')),
        ADD created_by text NOT NULL DEFAULT '',
        ADD overlap_until timestamptz,
        ADD expires_at timestamptz,
        ADD refresh_expires_at timestamptz,
        ADD scopes text[] NOT NULL DEFAULT '{}',
        ADD shredded_at timestamptz,
        ALTER wrapped_key DROP NOT NULL,
        ALTER sealed DROP NOT NULL""",
    "ALTER TABLE registry.integrations ADD app_id uuid",
    """ALTER TABLE registry.request_answers
        ADD key_version integer NOT NULL DEFAULT 1 REFERENCES registry.key_versions""",
    """ALTER TABLE registry.platform_answers
        ADD key_version integer NOT NULL DEFAULT 1 REFERENCES registry.key_versions""",
)
FILL = (
    "UPDATE registry.credential_versions SET key_id = data_key_id",
    """UPDATE registry.credentials AS c SET declared = v.fingerprints
        FROM registry.credential_versions AS v
        WHERE (v.tenant_id, v.credential_id, v.version)
            = (c.tenant_id, c.credential_id, c.version)""",
)
CLOSE = (
    "ALTER TABLE registry.credential_versions ALTER key_id SET NOT NULL",
    """ALTER TABLE registry.credential_versions ADD CONSTRAINT credential_versions_shredded CHECK (
        (shredded_at IS NULL) = (wrapped_key IS NOT NULL)
        AND (shredded_at IS NULL) = (sealed IS NOT NULL))""",
    """ALTER TABLE registry.data_keys ADD CONSTRAINT data_keys_shredded CHECK (
        (state = 'shredded') = (wrapped IS NULL) AND (state = 'active') = (retired_at IS NULL))""",
    # Looked at when all is written: an app may stand behind what it gives tokens to.
    """ALTER TABLE registry.credentials ADD CONSTRAINT credentials_app_fkey
        FOREIGN KEY (tenant_id, app_id) REFERENCES registry.credentials
        DEFERRABLE INITIALLY DEFERRED""",
    """ALTER TABLE registry.credentials ADD CONSTRAINT credentials_venue_fkey
        FOREIGN KEY (tenant_id, venue_id) REFERENCES registry.venues ON DELETE RESTRICT""",
    """ALTER TABLE registry.integrations ADD CONSTRAINT integrations_app_fkey
        FOREIGN KEY (tenant_id, app_id) REFERENCES registry.credentials ON DELETE RESTRICT""",
    "ALTER TABLE registry.request_answers ALTER key_version DROP DEFAULT",
    "ALTER TABLE registry.platform_answers ALTER key_version DROP DEFAULT",
)
# A version of the key-encryption key is disabled only when nothing needs it, and wraps nothing once
# it is: the foreign keys say both, whichever of two transactions comes first.
WRAPPED = (
    *("registry.data_keys", "registry.request_answers", "registry.platform_answers"),
    "registry.sealing_keys",
)
GUARDS = (
    """ALTER TABLE registry.key_versions
        ADD usable boolean NOT NULL
            GENERATED ALWAYS AS (state IN ('pending', 'active', 'decrypt_only')) STORED,
        ADD CONSTRAINT key_versions_usable_key UNIQUE (version, usable)""",
    *(
        f"ALTER TABLE {table} DROP CONSTRAINT {table.partition('.')[2]}_key_version_fkey"
        for table in WRAPPED
    ),
    *(
        statement
        for table in WRAPPED
        for statement in (
            (
                f"ALTER TABLE {table} "
                "ADD key_usable boolean NOT NULL DEFAULT true CHECK (key_usable)"
            ),
            (
                f"ALTER TABLE {table} ADD CONSTRAINT {table.partition('.')[2]}_key_version_fkey "
                "FOREIGN KEY (key_version, key_usable) "
                "REFERENCES registry.key_versions (version, usable)"
            ),
        )
    ),
    """INSERT INTO registry.credential_status (tenant_id, credential_id)
        SELECT tenant_id, credential_id FROM registry.credentials""",
)
INDEXES = (
    (
        "CREATE UNIQUE INDEX key_versions_one_active ON registry.key_versions (state) "
        "WHERE state = 'active'"
    ),
    (
        "CREATE UNIQUE INDEX key_versions_one_pending ON registry.key_versions (state) "
        "WHERE state = 'pending'"
    ),
    (
        "CREATE UNIQUE INDEX data_keys_one_active ON registry.data_keys (tenant_id) "
        "WHERE state = 'active'"
    ),
    # Leaders look for what is wrapped by an older key, and for what is due, in any tenant.
    "CREATE INDEX data_keys_by_version ON registry.data_keys (key_version)",
    "CREATE INDEX data_keys_retired ON registry.data_keys (retired_at) WHERE state = 'retired'",
    "CREATE INDEX request_answers_by_version ON registry.request_answers (key_version)",
    "CREATE INDEX platform_answers_by_version ON registry.platform_answers (key_version)",
    (
        "CREATE INDEX credential_versions_by_key "
        "ON registry.credential_versions (tenant_id, data_key_id) WHERE shredded_at IS NULL"
    ),
    (
        "CREATE INDEX pending_revisions_by_key "
        "ON registry.pending_revisions (tenant_id, data_key_id) "
        "WHERE state = 'pending'"
    ),
    (
        "CREATE INDEX credential_status_refresh ON registry.credential_status (refresh_at) "
        "WHERE refresh_at IS NOT NULL"
    ),
    (
        "CREATE INDEX credential_status_rotate ON registry.credential_status (rotate_at) "
        "WHERE rotate_at IS NOT NULL"
    ),
    (
        "CREATE INDEX credential_status_warn ON registry.credential_status (warn_at) "
        "WHERE warn_at IS NOT NULL"
    ),
    "CREATE INDEX credential_uses_age ON registry.credential_uses (bucket_at)",
    "CREATE INDEX oauth_flows_age ON registry.oauth_flows (expires_at)",
    "CREATE INDEX connect_links_age ON registry.connect_links (expires_at)",
    "CREATE INDEX connections_integration ON registry.connections (tenant_id, integration_id)",
    "CREATE INDEX connections_credential ON registry.connections (tenant_id, credential_id)",
)
MORE_VERBS = {
    "registry.data_keys": "UPDATE",
    "registry.credential_versions": "UPDATE",
    "registry.request_answers": "SELECT",
}

UNGUARD = (
    *(f"ALTER TABLE {table} DROP COLUMN key_usable" for table in WRAPPED),
    "ALTER TABLE registry.key_versions DROP COLUMN usable",
)
NARROW = (
    "ALTER TABLE registry.integrations DROP COLUMN app_id",
    (
        "ALTER TABLE registry.credential_versions DROP COLUMN key_id, DROP COLUMN origin, "
        "DROP COLUMN created_by, DROP COLUMN overlap_until, DROP COLUMN expires_at, "
        "DROP COLUMN refresh_expires_at, DROP COLUMN scopes, DROP COLUMN shredded_at"
    ),
    (
        "ALTER TABLE registry.credentials DROP COLUMN environment, DROP COLUMN venue_id, "
        'DROP COLUMN provider, DROP COLUMN key_type, DROP COLUMN app_id, DROP COLUMN "grant", '
        "DROP COLUMN scopes, DROP COLUMN expires, DROP COLUMN expires_at, "
        "DROP COLUMN allowed_endpoints, DROP COLUMN allowed_ranges, DROP COLUMN rotation, "
        "DROP COLUMN config, DROP COLUMN provider_metadata, DROP COLUMN notes, "
        "DROP COLUMN declared, DROP COLUMN created_by"
    ),
    "ALTER TABLE registry.data_keys DROP COLUMN state, DROP COLUMN wraps, DROP COLUMN retired_at",
    "ALTER TABLE registry.request_answers DROP COLUMN key_version",
    "ALTER TABLE registry.platform_answers DROP COLUMN key_version",
    (
        "ALTER TABLE registry.key_versions DROP COLUMN state, DROP COLUMN provider, "
        "DROP COLUMN reference, DROP COLUMN wrapped, DROP COLUMN wraps, DROP COLUMN changed_at"
    ),
    *(
        f"ALTER TABLE registry.{table} ADD CONSTRAINT {table}_key_version_fkey "
        "FOREIGN KEY (key_version) REFERENCES registry.key_versions"
        for table in ("data_keys",)
    ),
)
