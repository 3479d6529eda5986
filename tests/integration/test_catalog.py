"""The catalog of both schemas keeps every rule, and every rule notices each way to break it."""

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from migrations.roles import Roles
from services.chassis.secret import Secret
from services.embedded import Embedded
from tests.integration.catalog_rules import RULES, VIEWS, facts

DATABASE = "catalog"

# For each rule, statements that break it; `{registry}`, `{executor}`, `{executor_system}` and
# `{owner}` are roles.
BREACHES: dict[str, tuple[str, ...]] = {
    "a table has a tenant or is on the list of global tables": (
        "CREATE TABLE executor.stray (id uuid PRIMARY KEY)",
        "ALTER TABLE executor.feed_cursor ADD tenant_id uuid",
        "ALTER TABLE executor.feed_cursor RENAME TO cursors",
    ),
    "tenant_id is a uuid, never null, without a default": (
        "ALTER TABLE executor.tenant_lanes ALTER tenant_id SET DEFAULT gen_random_uuid()",
        "CREATE TABLE executor.stray (tenant_id uuid)",
        "CREATE TABLE executor.stray (tenant_id text NOT NULL)",
    ),
    "row-level security is enabled and forced, on partitions too": (
        "ALTER TABLE executor.work DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE registry.credentials NO FORCE ROW LEVEL SECURITY",
        "ALTER TABLE executor.event_receipts_0 NO FORCE ROW LEVEL SECURITY",
        "CREATE TABLE executor.stray (tenant_id uuid NOT NULL)",
    ),
    "each tenant table has the one tenant policy, USING and WITH CHECK": (
        "DROP POLICY tenant_isolation ON executor.work",
        "ALTER POLICY tenant_isolation ON executor.work USING (true)",
        "ALTER POLICY tenant_isolation ON executor.work WITH CHECK (true)",
        "ALTER POLICY tenant_isolation ON executor.work TO PUBLIC",
        (
            "ALTER POLICY tenant_isolation ON executor.work USING"
            " (tenant_id = current_setting('app.tenant')::uuid)"
        ),
        (
            "DROP POLICY tenant_isolation ON executor.work; CREATE POLICY tenant_isolation"
            " ON executor.work FOR SELECT TO {executor} USING (true)"
        ),
    ),
    "there is no other policy but the system login's on its list": (
        "CREATE POLICY extra ON executor.work TO {executor} USING (true)",
        (
            "CREATE POLICY system_access ON executor.work TO {executor_system} USING (true)"
            " WITH CHECK (true)"
        ),
        "ALTER POLICY system_access ON executor.tenants TO PUBLIC",
        "ALTER POLICY system_access ON executor.tenants USING (enabled)",
        "ALTER POLICY system_forgets ON executor.run_requests USING (true)",
        "ALTER POLICY system_forgets ON executor.run_requests TO PUBLIC",
        "ALTER POLICY tenant_purge ON executor.events USING (true)",
        "ALTER POLICY tenant_purge ON executor.tenants TO PUBLIC",
        "ALTER POLICY owner_looks ON registry.audit_anchors TO {registry}",
        "CREATE POLICY owner_looks ON registry.audit_events FOR SELECT TO {owner} USING (true)",
        (
            "CREATE POLICY tenant_purge ON executor.feed_cursor FOR DELETE TO {executor}"
            " USING (true)"
        ),
    ),
    "every table has a primary key": ("ALTER TABLE executor.work DROP CONSTRAINT work_pkey",),
    "keys and unique indexes begin with the tenant": (
        "CREATE UNIQUE INDEX ON executor.work (work_id)",
        "ALTER TABLE executor.work ADD UNIQUE (work_id, tenant_id)",
        "CREATE UNIQUE INDEX ON executor.work (lower(kind))",
    ),
    "unique keys have no column that may be null, unless nulls are not distinct": (
        "ALTER TABLE executor.work ADD UNIQUE (tenant_id, claim_id)",
    ),
    "foreign keys between tenant tables begin with the tenant on both sides": (
        (
            "ALTER TABLE executor.lanes ADD UNIQUE (lane_id); ALTER TABLE executor.work"
            " ADD FOREIGN KEY (lane_id) REFERENCES executor.lanes (lane_id)"
        ),
    ),
    "no global table refers to a tenant table": (
        "ALTER TABLE executor.feed_cursor ADD t uuid REFERENCES executor.tenants",
    ),
    "a deletion never cascades, and one that sets null names the columns": (
        (
            "ALTER TABLE executor.work ADD FOREIGN KEY (tenant_id, lane_id) REFERENCES executor.lanes"
            " ON DELETE CASCADE"
        ),
        (
            "ALTER TABLE executor.work ADD FOREIGN KEY (tenant_id, lane_id) REFERENCES executor.lanes"
            " ON DELETE SET NULL"
        ),
    ),
    "time tables have no foreign keys to or from them": (
        "ALTER TABLE executor.executions ADD FOREIGN KEY (tenant_id) REFERENCES executor.tenants",
        (
            "ALTER TABLE executor.work ADD FOREIGN KEY (tenant_id, target_id)"
            " REFERENCES executor.executions"
        ),
    ),
    "time tables, and no others, are partitioned by RANGE of their id": (
        "CREATE TABLE executor.stray (tenant_id uuid, id uuid) PARTITION BY RANGE (id)",
        "DROP TABLE executor.events",
        "DROP TABLE executor.events; CREATE TABLE executor.events (id uuid) PARTITION BY HASH (id)",
    ),
    "partitions of time tables are whole months between UUIDv7s, without a gap": (
        (
            "CREATE TABLE executor.odd PARTITION OF executor.events FOR VALUES FROM"
            " ('00000000-0000-4000-8000-000000000000') TO ('00000000-0001-4000-8000-000000000000')"
        ),
        (
            "CREATE TABLE executor.odd PARTITION OF executor.events FOR VALUES FROM"
            " ('00000000-0000-7000-8000-000000000000') TO ('00000000-0001-7000-8000-000000000000')"
        ),
        (
            "DO $$BEGIN EXECUTE format('DROP TABLE executor.events_%s',"
            " to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM')); END$$"
        ),
    ),
    "time tables have partitions for the last month, this one and the next": (
        (
            "DO $$BEGIN EXECUTE format('DROP TABLE executor.events_%s', to_char("
            "date_trunc('month', now() AT TIME ZONE 'UTC') + interval '1 month', 'YYYY_MM')); END$$"
        ),
        (
            "DO $$BEGIN EXECUTE format('DROP TABLE registry.audit_events_%s',"
            " to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM')); END$$"
        ),
    ),
    "partitions of time tables have the indexes of their parent, each once": (
        "CREATE INDEX ON ONLY executor.events (tenant_id)",
        (
            "DO $$BEGIN EXECUTE format('CREATE INDEX ON executor.events_%s (tenant_id)',"
            " to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM')); END$$"
        ),
    ),
    "there is no default partition": (
        "CREATE TABLE executor.rest PARTITION OF executor.events DEFAULT",
    ),
    "partitions are reached through their parent alone": (
        "GRANT SELECT ON executor.event_receipts_0 TO {executor}",
        "CREATE POLICY open ON executor.event_receipts_0 USING (true)",
    ),
    "logins are plain: no power beside row-level security": (
        "ALTER ROLE {executor} BYPASSRLS",
        "ALTER ROLE {registry} SUPERUSER",
        "ALTER ROLE {executor_system} CREATEROLE",
        "ALTER ROLE {executor_system} INHERIT",
        "ALTER ROLE {executor} RENAME TO somebody",
    ),
    "logins are members of nothing, and nothing of them": (
        "GRANT {owner} TO {executor}",
        "GRANT {executor_system} TO {executor}",
    ),
    "logins own nothing": (
        "ALTER TABLE executor.work OWNER TO {executor}",
        (
            "GRANT CREATE ON SCHEMA executor TO {executor_system};"
            " ALTER SCHEMA executor OWNER TO {executor_system}"
        ),
    ),
    "the owner owns every table, and neither logs in nor passes row-level security": (
        "ALTER TABLE executor.work OWNER TO CURRENT_USER",
        "ALTER ROLE {owner} LOGIN",
        "ALTER ROLE {owner} BYPASSRLS",
    ),
    "nobody has TRUNCATE, REFERENCES, TRIGGER or MAINTAIN, or may pass a grant on": (
        "GRANT TRUNCATE ON executor.work TO {executor}",
        "GRANT ALL ON registry.feed TO {registry}",
        "GRANT SELECT ON executor.work TO {executor} WITH GRANT OPTION",
    ),
    "a service's login reaches the tenant tables of its service only": (
        "GRANT SELECT ON registry.credentials TO {executor}",
        "GRANT SELECT ON executor.work TO PUBLIC",
    ),
    "global tables and the system login have the grants on the lists, no more and no less": (
        "GRANT SELECT ON executor.feed_cursor TO {executor}",
        "GRANT DELETE ON executor.feed_cursor TO {executor_system}",
        "GRANT SELECT ON executor.work TO {executor_system}",
        "REVOKE UPDATE ON executor.tenant_lanes FROM {executor_system}",
        "GRANT INSERT ON executor.run_requests TO {executor_system}",
    ),
    "schemas are open to the service's two logins only, and to no one's creations": (
        "GRANT USAGE ON SCHEMA registry TO PUBLIC",
        "GRANT USAGE ON SCHEMA registry TO {executor}",
        "GRANT CREATE ON SCHEMA executor TO {executor}",
    ),
    "functions with the owner's rights are on the list, narrow, and the system login's alone": (
        (
            "CREATE FUNCTION executor.open() RETURNS int LANGUAGE sql SECURITY DEFINER"
            " SET search_path = pg_catalog, pg_temp RETURN 1"
        ),
        "GRANT EXECUTE ON FUNCTION executor.make_partition TO {executor}",
        "GRANT EXECUTE ON FUNCTION executor.detach_partition TO PUBLIC",
        "GRANT EXECUTE ON FUNCTION registry.drop_partition TO {executor_system}",
        "ALTER FUNCTION executor.drop_partition RESET search_path",
        "ALTER FUNCTION executor.detach_partition RESET lock_timeout",
        "ALTER FUNCTION executor.make_partition OWNER TO CURRENT_USER",
        "DROP FUNCTION executor.drop_partition",
    ),
    "functions have a search_path of their own": (
        "CREATE FUNCTION executor.one() RETURNS int LANGUAGE sql RETURN 1",
        "ALTER FUNCTION executor.uuid7_floor RESET search_path",
    ),
    "views run with the rights of who asks, and none is materialised": (
        "CREATE VIEW executor.glance AS SELECT * FROM executor.work",
        "CREATE MATERIALIZED VIEW executor.copy AS SELECT * FROM executor.feed_cursor",
    ),
    "there are no enums": ("CREATE TYPE executor.mood AS ENUM ('good')",),
    "times have a zone": ("ALTER TABLE executor.work ADD at timestamp",),
    "a risk is a smallint rank": ("ALTER TABLE executor.work ADD risk text",),
    "a state is text with a CHECK": (
        "ALTER TABLE executor.work ADD state text",
        "ALTER TABLE executor.work ADD status integer CHECK (status > 0)",
    ),
}


@pytest.fixture(scope="module")
def catalog(postgres: Embedded, template: str) -> Iterator[psycopg.Connection[Any]]:
    """The superuser in a migrated database of this module's own."""
    with psycopg.connect(postgres.conninfo().reveal_text(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {DATABASE} TEMPLATE {template}")
        with psycopg.connect(_of(postgres).reveal_text(), autocommit=True) as connection:
            yield connection
        admin.execute(f"DROP DATABASE {DATABASE}")


def _of(postgres: Embedded) -> Secret:
    return postgres.conninfo(DATABASE)


@pytest.mark.parametrize("rule", RULES)
def test_the_catalog_keeps_the_rule(
    catalog: psycopg.Connection[Any], roles: Roles, rule: str
) -> None:
    assert _offenders(catalog, roles, rule) == []


@pytest.mark.parametrize(
    ("rule", "breach"), [(rule, breach) for rule in RULES for breach in BREACHES[rule]]
)
def test_the_rule_notices_a_breach(
    catalog: psycopg.Connection[Any], roles: Roles, rule: str, breach: str
) -> None:
    names = {
        "owner": roles.owner,
        "registry": roles.app("registry"),
        "executor": roles.app("executor"),
        "executor_system": roles.system("executor"),
    }
    with catalog.transaction(force_rollback=True):
        catalog.execute(breach.format_map(names))
        assert _offenders(catalog, roles, rule)


def test_months_that_the_system_login_has_made_keep_every_rule(
    catalog: psycopg.Connection[Any], roles: Roles
) -> None:
    with catalog.transaction(force_rollback=True):
        for service, table in (("registry", "audit_events"), ("executor", "execution_steps")):
            catalog.execute(f"SET LOCAL ROLE {roles.system(service)}")
            made = catalog.execute(
                f"SELECT {service}.make_partition(%s, (date_trunc('month',"
                " now() AT TIME ZONE 'UTC') + interval '2 months')::date)",
                [table],
            ).fetchone()
            assert made == (True,)
        catalog.execute("RESET ROLE")
        assert {rule: found for rule in RULES if (found := _offenders(catalog, roles, rule))} == {}


def _offenders(catalog: psycopg.Connection[Any], roles: Roles, rule: str) -> list[str]:
    rows = catalog.execute(VIEWS + RULES[rule], {"facts": json.dumps(facts(roles))})
    return [str(name) for (name, *_) in rows]
