"""How every table is kept to its tenant, and the closed lists of what is not.

A table with a tenant has row-level security enabled and forced, one policy for the service's login,
and grants that name each verb. The system login gets a policy of its own on the tables listed in
SYSTEM_ACCESS and FORGOTTEN and nowhere else. GLOBAL_TABLES have no tenant at all. The lists are
closed: the catalog test fails on a table that is on none and not protected.
"""

from collections.abc import Iterable, Mapping, Sequence

from alembic import op

from migrations import partitions
from migrations.roles import Roles

SETTING = "app.current_tenant_id"
TENANT_ID = f"(SELECT nullif(current_setting('{SETTING}', true), '')::uuid)"
POLICY = f"(tenant_id = {TENANT_ID})"

# Tables of the platform: no tenant, no row-level security; the verbs of each login.
GLOBAL_TABLES: dict[str, dict[str, str]] = {
    "registry.deployment": {"system": "SELECT"},
    "registry.principals": {"system": "SELECT, INSERT, UPDATE"},
    "registry.platform_grants": {"system": "SELECT, INSERT, DELETE"},
    "registry.roles": {"system": "SELECT"},
    "registry.permissions": {"system": "SELECT"},
    "registry.role_permissions": {"system": "SELECT"},
    "registry.api_keys": {"system": "SELECT, INSERT, UPDATE"},
    "registry.key_versions": {"system": "SELECT, INSERT, UPDATE"},
    "registry.key_holders": {"system": "SELECT, INSERT, UPDATE, DELETE"},
    "registry.sealing_keys": {"system": "SELECT, INSERT, UPDATE"},
    "registry.staff": {"system": "SELECT, INSERT, UPDATE, DELETE"},
    "registry.platform_answers": {"system": "SELECT, INSERT, UPDATE, DELETE"},
    "registry.api_key_usage": {"system": "SELECT, INSERT, UPDATE"},
    "registry.platform_audit_events": {"system": "SELECT, INSERT"},
    "registry.platform_audit_head": {"system": "SELECT, INSERT, UPDATE"},
    "registry.platform_audit_anchors": {"system": "SELECT, INSERT"},
    "registry.platform_audit_reviews": {"system": "SELECT, INSERT"},
    "executor.feed_cursor": {"system": "SELECT, INSERT, UPDATE"},
    "executor.platform_audit_outbox": {"system": "SELECT, INSERT, DELETE"},
    # Workers look at the switches inside each tenant; operators set them for all.
    "executor.provider_switches": {"app": "SELECT", "system": "SELECT, INSERT, DELETE"},
}

# Tables with a tenant which the system login may also touch, across tenants, and why.
SYSTEM_ACCESS: dict[str, tuple[str, str]] = {
    "registry.tenants": ("SELECT", "a slug must be found before its tenant is known"),
    "registry.role_bindings": ("SELECT", "authentication gathers a principal's roles everywhere"),
    "registry.tenant_roles": ("SELECT", "what a tenant's own role allows is asked with them"),
    "registry.tenant_status": ("SELECT", "a list of tenants tells how far each is projected"),
    "registry.tenant_tombstones": ("SELECT", "a tenant that is purged is asked for by its slug"),
    "registry.feed": ("SELECT", "the executor follows every tenant"),
    "registry.tenant_principals": (
        "SELECT, INSERT",
        "a tenant's principals and keys are managed where all are, among the platform's",
    ),
    "registry.tenant_switches": (
        "SELECT, INSERT, UPDATE",
        "usage comes in for many tenants at once, and a principal's last tenant is one of all",
    ),
    "registry.request_answers": (
        "SELECT, INSERT, UPDATE, DELETE",
        (
            "changes of access keep their answers; idle tenants' are forgotten, too, and all are"
            " sealed anew when the key-encryption key rotates"
        ),
    ),
    "registry.data_keys": ("SELECT, UPDATE", "all are wrapped anew when that key rotates"),
    "registry.credential_status": ("SELECT", "leaders look for what is to be refreshed or rotated"),
    "registry.pending_revisions": ("SELECT", "the expiry looks for what waited too long"),
    "registry.audit_events": ("SELECT, INSERT", "changes of a tenant's access tell its log"),
    "registry.audit_heads": (
        "SELECT, INSERT, UPDATE",
        "so do they; and a leader anchors the audit log of every tenant",
    ),
    "registry.audit_anchors": ("SELECT", "it skips the logs that have not grown since"),
    "executor.tenants": ("SELECT", "a slug must be found before its tenant is known"),
    "executor.app_streams": ("SELECT", "a stream's owner is found by its provider and its app"),
    "executor.app_accounts": ("SELECT", "an item of a stream is of whoever has its account"),
    "executor.tenant_lanes": ("SELECT, UPDATE", "workers claim due tenants"),
    "executor.audit_outbox": ("SELECT, DELETE", "a leader tells the registry of every tenant's"),
    "executor.schedules": ("SELECT", "the scheduler looks for what is due in any tenant"),
}

# Tables whose rows the system login forgets once they have had their time; it sees no younger one.
FORGOTTEN: dict[str, str] = {
    "executor.event_receipts": "received_at < now() - interval '7 days'",
    "executor.run_requests": "created_at < now() - interval '24 hours'",
    "executor.consumer_groups": "used_at < now() - interval '7 days'",
    "executor.replays": "updated_at < now() - interval '7 days'",
    "registry.credential_uses": "bucket_at < now() - interval '31 days'",
    "registry.oauth_flows": "expires_at < now() - interval '1 day'",
    "registry.connect_links": "expires_at < now() - interval '1 day'",
}

# What is left of a tenant that is purged: its slug, and the proof of what was done to it.
KEPT: frozenset[str] = frozenset(
    {
        "registry.tenants",
        "registry.tenant_tombstones",
        "registry.config_revisions",
        "registry.tenant_principals",
        "registry.audit_events",
        "registry.audit_heads",
        "registry.audit_anchors",
        "registry.audit_reviews",
    }
)

# When a service may delete what it otherwise keeps: its tenant is on its way out.
PURGED: dict[str, str] = {
    "registry": (
        f"EXISTS (SELECT FROM registry.tenants AS t WHERE t.tenant_id = {TENANT_ID}"
        " AND t.state = 'draining')"
    ),
    "executor": (
        f"EXISTS (SELECT FROM executor.tenants AS t WHERE t.tenant_id = {TENANT_ID}"
        " AND t.draining_since IS NOT NULL)"
    ),
}
# A policy on the tenants themselves cannot ask for them.
PURGED_ITSELF = {"executor.tenants": "draining_since IS NOT NULL"}


class Tenancy:
    """Protects the tables of one service's schema as its migrations make them."""

    def __init__(self, service: str, roles: Roles) -> None:
        self._app = roles.app(service)
        self._system = roles.system(service)

    def open_schema(self, schema: str) -> None:
        """Let both logins reach the schema, and nothing in it yet."""
        op.execute(f"REVOKE ALL ON SCHEMA {schema} FROM PUBLIC")
        op.execute(f"GRANT USAGE ON SCHEMA {schema} TO {self._app}, {self._system}")

    def make(
        self, of_platform: Mapping[str, str], of_tenants: Mapping[str, tuple[str, str]]
    ) -> None:
        """Make and protect tables, in their order: statements by table, with a tenant's verbs."""
        for table, statement in of_platform.items():
            op.execute(statement)
            self.open_global(table)
        for table, (verbs, statement) in of_tenants.items():
            op.execute(statement)
            self.protect(table, verbs)

    def protect(self, table: str, verbs: str) -> None:
        """Keep a table with a tenant to that tenant; `verbs` are for the service's login."""
        force(table)
        op.execute(
            f"CREATE POLICY tenant_isolation ON {table} TO {self._app} "
            f"USING {POLICY} WITH CHECK {POLICY}"
        )
        op.execute(f"GRANT {verbs} ON {table} TO {self._app}")
        if "DELETE" not in verbs and table not in KEPT:
            self._let_purge(table)
        if table in SYSTEM_ACCESS:
            self._open_to_system(table)
        if table in FORGOTTEN:
            op.execute(
                f"CREATE POLICY system_forgets ON {table} TO {self._system} "
                f"USING ({FORGOTTEN[table]}) WITH CHECK (false)"
            )
            op.execute(f"GRANT SELECT, DELETE ON {table} TO {self._system}")

    def widen(self, table: str, verbs: str) -> None:
        """Give the service's login more verbs on a table, and the system login what the list says.

        An earlier revision protected it, by the list as it was then.
        """
        op.execute(f"GRANT {verbs} ON {table} TO {self._app}")
        if table in SYSTEM_ACCESS:
            op.execute(f"DROP POLICY IF EXISTS system_access ON {table}")
            self._open_to_system(table)

    def _open_to_system(self, table: str) -> None:
        verbs, _ = SYSTEM_ACCESS[table]
        op.execute(
            f"CREATE POLICY system_access ON {table} TO {self._system} "
            "USING (true) WITH CHECK (true)"
        )
        op.execute(f"GRANT {verbs} ON {table} TO {self._system}")

    def _let_purge(self, table: str) -> None:
        """Let the service's login delete rows of a tenant that is on its way out, and no others."""
        leaving = PURGED_ITSELF.get(table, PURGED[table.partition(".")[0]])
        op.execute(
            f"CREATE POLICY tenant_purge ON {table} AS RESTRICTIVE FOR DELETE TO {self._app} "
            f"USING ({leaving})"
        )
        op.execute(f"GRANT DELETE ON {table} TO {self._app}")

    def by_month(self, schema: str, tables: Sequence[str], guard: str = "") -> None:
        """Give time tables their first months, and the system login the means to keep them."""
        partitions.make(schema, tables, self._system, guard)

    def open_global(self, table: str) -> None:
        """Give a table of the platform the verbs of the closed list."""
        for login, verbs in GLOBAL_TABLES[table].items():
            role = self._system if login == "system" else self._app
            op.execute(f"GRANT {verbs} ON {table} TO {role}")


def drop(*groups: Iterable[str]) -> None:
    """Drop the tables of a migration, the newest first."""
    for table in reversed([table for group in groups for table in group]):
        op.execute(f"DROP TABLE {table}")


def force(table: str) -> None:
    """Enable and force row-level security; without a policy nobody sees a row."""
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")


def hash_partitions(table: str, count: int) -> None:
    """Partitions of a table by the hash of its tenant; reached through the parent alone."""
    for remainder in range(count):
        name = f"{table}_{remainder}"
        op.execute(
            f"CREATE TABLE {name} PARTITION OF {table} "
            f"FOR VALUES WITH (MODULUS {count}, REMAINDER {remainder})"
        )
        force(name)


def seeing(tables: Sequence[str], statements: Sequence[str]) -> None:
    """Run statements that must see every row of these tables: FORCE blinds the owner, too."""
    for table in tables:
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
    for statement in statements:
        op.execute(statement)
    for table in tables:
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
