"""The rules for tables, keys, roles and grants, each as a query that returns who breaks it.

They are read from PostgreSQL's own catalog, over both schemas. Parameters: `facts`, a JSON object of
the closed lists and of the deployment's roles (see `facts`).
"""

from typing import Any

from migrations.partitions import CALLABLE
from migrations.roles import SERVICES, Roles
from migrations.tenancy import FORGOTTEN, GLOBAL_TABLES, SYSTEM_ACCESS

ALEMBIC = ("registry.alembic_version", "executor.alembic_version")
# A slug is looked up before its tenant is known, and belongs to one tenant of all.
GLOBAL_KEYS = (
    "registry.tenants.tenants_slug_key",
    "executor.tenants.tenants_slug_key",
)
TIME_TABLES = {
    "registry.api_key_usage": "id",
    "registry.audit_events": "id",
    "registry.platform_audit_events": "id",
    "executor.events": "id",
    "executor.executions": "id",
    "executor.execution_links": "execution_id",
    "executor.deliveries": "id",
    "executor.delivery_attempts": "delivery_id",
    "executor.execution_steps": "execution_id",
    "executor.sync_runs": "id",
}
# The ages of FORGOTTEN as PostgreSQL spells them.
FORGETS = {
    "executor.event_receipts": "(received_at < (now() - '7 days'::interval))",
    "executor.run_requests": "(created_at < (now() - '24:00:00'::interval))",
    "executor.consumer_groups": "(used_at < (now() - '7 days'::interval))",
    "executor.replays": "(updated_at < (now() - '7 days'::interval))",
    "registry.credential_uses": "(bucket_at < (now() - '31 days'::interval))",
    "registry.oauth_flows": "(expires_at < (now() - '1 day'::interval))",
    "registry.connect_links": "(expires_at < (now() - '1 day'::interval))",
}
# What must be so before a service may delete what it otherwise keeps, as PostgreSQL spells it.
_LEAVING = (
    "(EXISTS ( SELECT FROM {tenants} t WHERE ((t.tenant_id = ( SELECT"
    " (NULLIF(current_setting('app.current_tenant_id'::text, true), ''::text))::uuid"
    ' AS "nullif")) AND ({leaving}))))'
)
PURGES = {
    "registry": _LEAVING.format(tenants="registry.tenants", leaving="t.state = 'draining'::text"),
    "executor": _LEAVING.format(tenants="executor.tenants", leaving="t.draining_since IS NOT NULL"),
    "executor.tenants": "(draining_since IS NOT NULL)",
}
POLICY = (
    "(tenant_id = ( SELECT (NULLIF(current_setting('app.current_tenant_id'::text, true),"
    " ''::text))::uuid AS \"nullif\"))"
)


def facts(roles: Roles) -> dict[str, Any]:
    """The closed lists, and what each login may do, as the rules read them."""
    return {
        "global": [*GLOBAL_TABLES, *ALEMBIC],
        "system": list(SYSTEM_ACCESS),
        "global_keys": list(GLOBAL_KEYS),
        "forgets": FORGETS,
        "purges": PURGES,
        "time": TIME_TABLES,
        "callable": [f"{service}.{name}" for service in SERVICES for name in CALLABLE],
        "policy": POLICY,
        "owner": roles.owner,
        "logins": list(roles.logins()),
        "app": {service: roles.app(service) for service in SERVICES},
        "system_login": {service: roles.system(service) for service in SERVICES},
        "grants": _listed_grants(roles),
    }


def _listed_grants(roles: Roles) -> list[str]:
    """`table login VERB` for everything on the closed lists."""
    found = []
    for table, logins in GLOBAL_TABLES.items():
        service = table.partition(".")[0]
        names = {"system": roles.system(service), "app": roles.app(service)}
        found += [
            f"{table} {names[login]} {verb}"
            for login, verbs in logins.items()
            for verb in verbs.split(", ")
        ]
    for table, (verbs, _) in SYSTEM_ACCESS.items():
        system = roles.system(table.partition(".")[0])
        found += [f"{table} {system} {verb}" for verb in verbs.split(", ")]
    for table in FORGOTTEN:
        system = roles.system(table.partition(".")[0])
        found += [f"{table} {system} SELECT", f"{table} {system} DELETE"]
    return found


# What every rule may read: relations `r`, split into tables and partitions, with their facts.
VIEWS = """
    WITH facts AS (SELECT %(facts)s::jsonb AS f),
    r AS (
        SELECT c.*, n.nspname AS schema, n.nspname || '.' || c.relname AS name,
            n.nspname || '.' || c.relname = ANY(ARRAY(SELECT jsonb_array_elements_text(f->'global')
            )) AS listed_global,
            EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'tenant_id'
                AND NOT a.attisdropped) AS has_tenant
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN facts
        WHERE n.nspname IN ('registry', 'executor')),
    tables AS (SELECT * FROM r WHERE relkind IN ('r', 'p') AND NOT relispartition),
    partitions AS (SELECT * FROM r WHERE relkind IN ('r', 'p') AND relispartition),
    tenant_tables AS (SELECT * FROM tables WHERE NOT listed_global),
    columns AS (SELECT t.name AS table_name, t.schema, a.*, format_type(a.atttypid, a.atttypmod) AS type
        FROM tables t JOIN pg_attribute a ON a.attrelid = t.oid WHERE a.attnum > 0 AND NOT a.attisdropped),
    acl AS (SELECT r.*, a.grantee, a.privilege_type, a.is_grantable,
            coalesce(g.rolname, 'PUBLIC') AS grantee_name
        FROM r CROSS JOIN aclexplode(r.relacl) a LEFT JOIN pg_roles g ON g.oid = a.grantee
        WHERE a.grantee <> r.relowner),
    policies AS (SELECT t.name AS table_name, t.schema, p.*,
            pg_get_expr(polqual, polrelid) AS using_text,
            pg_get_expr(polwithcheck, polrelid) AS check_text,
            ARRAY(SELECT rolname::text FROM pg_roles WHERE oid = ANY(polroles)) AS role_names
        FROM r t JOIN pg_policy p ON p.polrelid = t.oid),
    functions AS (SELECT n.nspname AS schema, n.nspname || '.' || p.proname AS name, p.*
        FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE n.nspname IN ('registry', 'executor')),
    logins AS (SELECT * FROM pg_roles, facts WHERE f->'logins' ? rolname),
    bounds AS (
        SELECT q.name AS partition, parent.name AS parent, found[1] AS low, found[2] AS high,
            to_timestamp(('x0000' || left(replace(found[1], '-', ''), 12))::bit(64)::bigint / 1000.0)
                AT TIME ZONE 'UTC' AS starts,
            to_timestamp(('x0000' || left(replace(found[2], '-', ''), 12))::bit(64)::bigint / 1000.0)
                AT TIME ZONE 'UTC' AS ends
        FROM partitions q JOIN pg_inherits i ON i.inhrelid = q.oid
        JOIN tables parent ON parent.oid = i.inhparent CROSS JOIN facts
        CROSS JOIN regexp_match(pg_get_expr(q.relpartbound, q.oid), 'FROM \\(''(.*)''\\) TO \\(''(.*)''\\)')
            AS found
        WHERE f->'time' ? parent.name)
"""

RULES: dict[str, str] = {
    "a table has a tenant or is on the list of global tables": """
        SELECT name FROM tables WHERE has_tenant = listed_global
        UNION SELECT g FROM facts, jsonb_array_elements_text(f->'global') g
        WHERE g NOT IN (SELECT name FROM tables)""",
    "tenant_id is a uuid, never null, without a default": """
        SELECT table_name FROM columns WHERE attname = 'tenant_id'
        AND (type <> 'uuid' OR NOT attnotnull OR atthasdef)""",
    "row-level security is enabled and forced, on partitions too": """
        SELECT name FROM (SELECT * FROM tenant_tables UNION ALL SELECT * FROM partitions) all_of_them
        WHERE NOT (relrowsecurity AND relforcerowsecurity)""",
    "each tenant table has the one tenant policy, USING and WITH CHECK": """
        SELECT t.name FROM tenant_tables t CROSS JOIN facts
        WHERE NOT EXISTS (SELECT FROM policies p WHERE p.polrelid = t.oid
            AND polname = 'tenant_isolation' AND polpermissive AND polcmd = '*'
            AND role_names = ARRAY[f->'app'->>t.schema]
            AND using_text = f->>'policy' AND check_text = f->>'policy')""",
    "there is no other policy but the system login's on its list": """
        SELECT table_name || ' ' || polname FROM policies CROSS JOIN facts
        WHERE polname <> 'tenant_isolation' AND NOT (
            polname = 'tenant_purge' AND NOT polpermissive AND polcmd = 'd'
            AND role_names = ARRAY[f->'app'->>schema]
            AND regexp_replace(using_text, '\\s+', ' ', 'g')
                = coalesce(f->'purges'->>table_name, f->'purges'->>schema)
            OR
            polname = 'owner_looks' AND table_name = 'registry.audit_anchors' AND polcmd = 'r'
            AND role_names = ARRAY[f->>'owner']
            OR
            role_names = ARRAY[f->'system_login'->>schema] AND polcmd = '*' AND (
                polname = 'system_access' AND f->'system' ? table_name
                AND using_text = 'true' AND check_text = 'true'
                OR polname = 'system_forgets'
                AND using_text IS NOT DISTINCT FROM f->'forgets'->>table_name
                AND check_text = 'false'))""",
    "every table has a primary key": """
        SELECT name FROM tables t WHERE NOT EXISTS (
            SELECT FROM pg_constraint WHERE conrelid = t.oid AND contype = 'p')""",
    "keys and unique indexes begin with the tenant": """
        SELECT t.name || '.' || i.relname FROM tenant_tables t
        JOIN pg_index x ON x.indrelid = t.oid AND x.indisunique JOIN pg_class i ON i.oid = x.indexrelid
        JOIN pg_attribute a ON a.attrelid = t.oid AND a.attname = 'tenant_id' CROSS JOIN facts
        WHERE x.indkey[0] <> a.attnum AND NOT f->'global_keys' ? (t.name || '.' || i.relname)""",
    "unique keys have no column that may be null, unless nulls are not distinct": """
        SELECT t.name || '.' || i.relname FROM tables t
        JOIN pg_index x ON x.indrelid = t.oid AND x.indisunique AND NOT x.indnullsnotdistinct
        JOIN pg_class i ON i.oid = x.indexrelid
        JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = ANY(x.indkey) WHERE NOT a.attnotnull""",
    "foreign keys between tenant tables begin with the tenant on both sides": """
        SELECT k.conrelid::regclass::text || ' ' || k.conname FROM pg_constraint k
        JOIN tenant_tables s ON s.oid = k.conrelid JOIN tenant_tables d ON d.oid = k.confrelid
        JOIN pg_attribute a ON a.attrelid = s.oid AND a.attname = 'tenant_id'
        JOIN pg_attribute b ON b.attrelid = d.oid AND b.attname = 'tenant_id'
        WHERE k.contype = 'f' AND (k.conkey[1] <> a.attnum OR k.confkey[1] <> b.attnum)""",
    "no global table refers to a tenant table": """
        SELECT s.name || ' ' || k.conname FROM pg_constraint k JOIN tables s ON s.oid = k.conrelid
        JOIN tenant_tables d ON d.oid = k.confrelid WHERE k.contype = 'f' AND s.listed_global""",
    "a deletion never cascades, and one that sets null names the columns": """
        SELECT s.name || ' ' || k.conname FROM pg_constraint k JOIN tables s ON s.oid = k.conrelid
        WHERE k.contype = 'f' AND (k.confdeltype IN ('c', 'd')
            OR k.confdeltype = 'n' AND k.confdelsetcols IS NULL)""",
    "time tables have no foreign keys to or from them": """
        SELECT s.name || ' ' || k.conname FROM pg_constraint k JOIN tables s ON s.oid = k.conrelid
        JOIN r d ON d.oid = k.confrelid CROSS JOIN facts
        WHERE k.contype = 'f' AND (f->'time' ? s.name OR f->'time' ? d.name)""",
    "time tables, and no others, are partitioned by RANGE of their id": """
        SELECT t.name FROM tables t CROSS JOIN facts
        WHERE coalesce(pg_get_partkeydef(t.oid), '') LIKE 'RANGE%%' AND NOT f->'time' ? t.name
        UNION SELECT l.key FROM facts, jsonb_each_text(f->'time') l WHERE NOT EXISTS (
            SELECT FROM tables t WHERE t.name = l.key
            AND pg_get_partkeydef(t.oid) = 'RANGE (' || l.value || ')')""",
    "partitions of time tables are whole months between UUIDv7s, without a gap": """
        SELECT partition FROM (SELECT *, lag(high) OVER (PARTITION BY parent ORDER BY low) AS before
            FROM bounds) b
        WHERE substr(low, 15, 1) <> '7' OR substr(high, 15, 1) <> '7'
        OR starts <> date_trunc('month', starts) OR ends <> starts + interval '1 month' OR before <> low""",
    "time tables have partitions for the last month, this one and the next": """
        SELECT l.key FROM facts, jsonb_each_text(f->'time') l, generate_series(-1, 1) n
        WHERE NOT EXISTS (SELECT FROM bounds WHERE parent = l.key
            AND starts = date_trunc('month', now() AT TIME ZONE 'UTC') + n * interval '1 month')""",
    "partitions of time tables have the indexes of their parent, each once": """
        SELECT b.partition FROM bounds b WHERE (
            SELECT array_agg(i.inhparent ORDER BY i.inhparent) FROM pg_index x
            LEFT JOIN pg_inherits i ON i.inhrelid = x.indexrelid WHERE x.indrelid = b.partition::regclass
        ) IS DISTINCT FROM (
            SELECT array_agg(x.indexrelid ORDER BY x.indexrelid) FROM pg_index x
            WHERE x.indrelid = b.parent::regclass)""",
    "there is no default partition": """
        SELECT name FROM partitions WHERE pg_get_expr(relpartbound, oid) = 'DEFAULT'""",
    "partitions are reached through their parent alone": """
        SELECT p.name || ' ' || grantee_name FROM partitions p JOIN acl ON acl.oid = p.oid
        UNION SELECT table_name || ' ' || polname FROM policies
        WHERE polrelid IN (SELECT oid FROM partitions)""",
    "logins are plain: no power beside row-level security": """
        SELECT rolname FROM logins WHERE rolsuper OR rolbypassrls OR rolcreatedb OR rolcreaterole
        OR rolreplication OR rolinherit OR NOT rolcanlogin
        UNION SELECT l FROM facts, jsonb_array_elements_text(f->'logins') l
        WHERE l NOT IN (SELECT rolname FROM pg_roles)""",
    "logins are members of nothing, and nothing of them": """
        SELECT m.roleid::regrole::text FROM pg_auth_members m JOIN logins l ON l.oid IN (m.roleid, m.member)""",
    "logins own nothing": """
        SELECT rolname || ' ' || d.classid::regclass FROM logins
        JOIN pg_shdepend d ON d.refobjid = logins.oid AND d.refclassid = 'pg_authid'::regclass
        WHERE d.deptype = 'o'""",
    "the owner owns every table, and neither logs in nor passes row-level security": """
        SELECT name FROM r, facts WHERE pg_get_userbyid(relowner) <> f->>'owner'
        UNION SELECT rolname FROM pg_roles, facts
        WHERE rolname = f->>'owner' AND (rolcanlogin OR rolsuper OR rolbypassrls)""",
    "nobody has TRUNCATE, REFERENCES, TRIGGER or MAINTAIN, or may pass a grant on": """
        SELECT name || ' ' || grantee_name FROM acl
        WHERE is_grantable OR privilege_type IN ('TRUNCATE', 'REFERENCES', 'TRIGGER', 'MAINTAIN')""",
    "a service's login reaches the tenant tables of its service only": """
        SELECT name || ' ' || grantee_name FROM acl CROSS JOIN facts
        WHERE relkind <> 'S' AND grantee_name <> ALL(ARRAY[
            f->'app'->>schema, f->'system_login'->>schema])""",
    "global tables and the system login have the grants on the lists, no more and no less": """
        SELECT line FROM (
            SELECT acl.name || ' ' || grantee_name || ' ' || privilege_type AS line FROM acl, facts
            WHERE relkind <> 'S' AND (listed_global OR grantee_name = f->'system_login'->>schema)) found
        FULL JOIN (SELECT jsonb_array_elements_text(f->'grants') AS wanted FROM facts) listed
        ON line = wanted WHERE line IS NULL OR wanted IS NULL""",
    "schemas are open to the service's two logins only, and to no one's creations": """
        SELECT n.nspname || ' ' || coalesce(g.rolname, 'PUBLIC') FROM pg_namespace n
        CROSS JOIN aclexplode(n.nspacl) a LEFT JOIN pg_roles g ON g.oid = a.grantee CROSS JOIN facts
        WHERE n.nspname IN ('registry', 'executor') AND a.grantee <> n.nspowner
        AND (a.privilege_type <> 'USAGE' OR coalesce(g.rolname, 'PUBLIC') <> ALL(ARRAY[
            f->'app'->>n.nspname, f->'system_login'->>n.nspname]))""",
    "functions with the owner's rights are on the list, narrow, and the system login's alone": """
        SELECT name FROM functions, facts WHERE prosecdef AND NOT (f->'callable' ? name
            AND pg_get_userbyid(proowner) = f->>'owner'
            AND proconfig @> ARRAY['search_path=pg_catalog, pg_temp', 'lock_timeout=200ms']
            AND proacl IS NOT NULL AND NOT EXISTS (SELECT FROM aclexplode(proacl) a
                WHERE a.grantee <> proowner AND (a.is_grantable OR
                    a.grantee <> to_regrole(f->'system_login'->>schema))))
        UNION SELECT l FROM facts, jsonb_array_elements_text(f->'callable') l
        WHERE l NOT IN (SELECT name FROM functions WHERE prosecdef)""",
    "functions have a search_path of their own": """
        SELECT name FROM functions
        WHERE NOT coalesce(proconfig::text LIKE '%%search_path=pg_catalog%%', false)""",
    "views run with the rights of who asks, and none is materialised": """
        SELECT name FROM r WHERE relkind = 'm' OR relkind = 'v'
        AND NOT coalesce(reloptions @> ARRAY['security_invoker=true'], false)""",
    "there are no enums": """
        SELECT typname FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
        WHERE typtype = 'e' AND nspname IN ('registry', 'executor')""",
    "times have a zone": """
        SELECT table_name || '.' || attname FROM columns
        WHERE atttypid IN ('timestamp'::regtype, 'time'::regtype, 'timestamp[]'::regtype)""",
    "a risk is a smallint rank": """
        SELECT table_name FROM columns WHERE attname = 'risk' AND type <> 'smallint'""",
    "a state is text with a CHECK": """
        SELECT c.table_name || '.' || c.attname FROM columns c WHERE attname IN ('state', 'status')
        AND NOT (type = 'text' AND EXISTS (SELECT FROM pg_constraint k WHERE k.contype = 'c'
            AND k.conrelid = c.attrelid AND c.attnum = ANY(k.conkey)))""",
}
