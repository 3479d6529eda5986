"""What the registry's own login sees without, and within, a tenant: row-level security itself."""

import psycopg
import pytest
from psycopg import sql

from services.chassis.secret import Secret
from tests.integration.registry.callers import Caller, Registry
from tests.integration.registry.documents import acme

SETTING = "SELECT set_config('app.current_tenant_id', %s, false)"
Rows = psycopg.AsyncConnection[tuple[object, ...]]


@pytest.fixture
async def tenant_tables(rows: Rows) -> dict[str, list[str]]:
    """Every table with a tenant, with its columns; partitions by their parents."""
    found = await (
        await rows.execute(
            "SELECT c.relname, array_agg(a.attname::text ORDER BY a.attnum) FROM pg_class c"
            " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0"
            " WHERE c.relnamespace = 'registry'::regnamespace AND c.relkind IN ('r', 'p')"
            " AND NOT c.relispartition GROUP BY 1"
        )
    ).fetchall()
    tables = {str(name): list(columns) for name, columns in found}  # type: ignore[call-overload]
    return {name: columns for name, columns in tables.items() if "tenant_id" in columns}


@pytest.fixture
async def raw(registry_conninfos: tuple[Secret, Secret], owner: Caller) -> Rows:
    for slug in ("acme", "globex"):
        await owner.apply(slug, acme(slug), request_id="00000000-0000-7000-8000-000000000001")
    return await psycopg.AsyncConnection.connect(
        registry_conninfos[0].reveal_text(), autocommit=True
    )


async def count(connection: Rows, table: str, where: str = "true", *values: object) -> int:
    query = sql.SQL("SELECT count(*) FROM registry.{} WHERE " + where)
    found = await (await connection.execute(query.format(sql.Identifier(table)), values)).fetchone()
    assert found is not None
    return int(str(found[0]))


async def test_without_a_tenant_no_table_has_a_row(
    raw: Rows, rows: Rows, tenant_tables: dict[str, list[str]]
) -> None:
    assert len(tenant_tables) > 12
    async with raw:
        for setting in (None, ""):
            if setting is not None:
                await raw.execute(SETTING, [setting])
            for table in tenant_tables:
                assert await count(raw, table) == 0, table
    empty = {table for table in tenant_tables if not await count(rows, table)}
    assert empty == {
        *("audit_anchors", "audit_reviews"),
        *(
            "connect_links",
            "connections",
            "credential_uses",
            "event_types",
            "oauth_flows",
            "venues",
        ),
        "pending_approvals",
        "pending_revisions",
        "review_policies",
        "role_bindings",
        "tenant_principals",
        "tenant_roles",
        "tenant_status",
        "tenant_switches",
        "tenant_tombstones",
    }


async def test_within_a_tenant_another_ones_rows_cannot_be_read_or_written(
    raw: Rows, rows: Rows, registry: Registry, tenant_tables: dict[str, list[str]]
) -> None:
    mine, other = await registry.tenant_id("acme"), await registry.tenant_id("globex")
    await registry.key("ADMIN", "globex")
    await rows.execute(
        "INSERT INTO registry.tenant_roles (tenant_id, role_id, name, labels, annotations,"
        " revision, description, permissions)"
        " VALUES (%s, gen_random_uuid(), 'reader', '{}', '{}', 1, '', '{tenants.read}')",
        [other],
    )
    await rows.execute(
        "INSERT INTO registry.tenant_tombstones (tenant_id, slug, actor_id, actor_kind, actor_name,"
        " reason, forced) SELECT tenant_id, slug, tenant_id, 'user', '', '', false"
        " FROM registry.tenants WHERE tenant_id = %s",
        [other],
    )
    await _own_a_service(rows, other)
    await _connect(rows, other)
    await rows.execute(
        "INSERT INTO registry.event_types (tenant_id, event_type_id, name, labels, annotations,"
        " revision, type, schema, is_active)"
        " VALUES (%s, gen_random_uuid(), 'paid', '{}', '{}', 1, 'invoice.paid', '{}', true)",
        [other],
    )
    await _let_wait(rows, other)
    await _anchor_and_review(rows, other)
    await registry.tenants.report(other, 1)
    async with raw:
        await raw.execute(SETTING, [str(mine)])
        for table, columns in tenant_tables.items():
            assert await count(rows, table, "tenant_id = %s", other) > 0, table
            assert await count(raw, table, "tenant_id <> %s", mine) == 0, table
            name = sql.Identifier(table)
            for action in (
                "UPDATE registry.{} SET tenant_id = tenant_id WHERE tenant_id = {}",
                "DELETE FROM registry.{} WHERE tenant_id = {}",
            ):
                statement = sql.SQL(action).format(name, sql.Literal(other))
                try:
                    touched = (await raw.execute(statement)).rowcount
                except psycopg.errors.InsufficientPrivilege:
                    touched = 0
                assert touched == 0, (table, action)
            await _refuses_inserts(raw, rows, table, columns, other)


async def _anchor_and_review(rows: Rows, tenant: object) -> None:
    """A signed word on its audit log, and a review of an event."""
    for statement in (
        "INSERT INTO registry.audit_anchors VALUES (%s, 1, false, '', now(), '')",
        "INSERT INTO registry.audit_reviews VALUES (%s, gen_random_uuid(), gen_random_uuid(), '', '')",
    ):
        await rows.execute(statement.encode(), [tenant])


async def _connect(rows: Rows, tenant_id: object) -> None:
    """A venue, a connection, and what was used and begun on the way to it."""
    await rows.execute(
        "INSERT INTO registry.venues (tenant_id, venue_id, name, labels, annotations, revision,"
        " display_name) VALUES (%s, gen_random_uuid(), 'shop', '{}', '{}', 1, '')",
        [tenant_id],
    )
    await rows.execute(
        "INSERT INTO registry.connections (tenant_id, connection_id, name, labels, annotations,"
        ' revision, integration_id, credential_id, "user", external_account_id, scopes,'
        " provider_metadata, is_active, provider) SELECT tenant_id, gen_random_uuid(), 'shop', '{}',"
        " '{}', 1, integration_id, credential_id, '', '', '{}', '{}', true, provider"
        " FROM registry.integrations WHERE tenant_id = %s AND credential_id IS NOT NULL LIMIT 1",
        [tenant_id],
    )
    await rows.execute(
        "INSERT INTO registry.credential_uses (tenant_id, credential_id, bucket_at, uses, errors)"
        " SELECT tenant_id, credential_id, now(), 1, 0 FROM registry.credentials"
        " WHERE tenant_id = %s LIMIT 1",
        [tenant_id],
    )
    await rows.execute(
        "INSERT INTO registry.oauth_flows (tenant_id, flow_id, integration_id, principal_id, actor,"
        " state_hash, wishes, data_key_id, wrapped_key, sealed, expires_at) SELECT tenant_id,"
        " gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), '{}', '', '{}', data_key_id, '',"
        " '', now() FROM registry.data_keys WHERE tenant_id = %s",
        [tenant_id],
    )
    await rows.execute(
        "INSERT INTO registry.connect_links (tenant_id, link_id, integration_id, principal_id,"
        " actor, wishes, expires_at) VALUES (%s, gen_random_uuid(), gen_random_uuid(),"
        " gen_random_uuid(), '{}', '{}', now())",
        [tenant_id],
    )


async def _own_a_service(rows: Rows, tenant: object) -> None:
    """A principal of the tenant's own, who has worked there."""
    for statement in (
        (
            "INSERT INTO registry.tenant_principals"
            " SELECT %s, principal_id FROM registry.principals LIMIT 1"
        ),
        (
            "INSERT INTO registry.tenant_switches"
            " SELECT %s, principal_id, now() FROM registry.principals LIMIT 1"
        ),
    ):
        await rows.execute(statement.encode(), [tenant])


async def _let_wait(rows: Rows, tenant: object) -> None:
    """A policy, and a change that waits with one approval."""
    for statement in (
        (
            "INSERT INTO registry.review_policies (tenant_id, policy_id, name, labels, annotations,"
            " revision, min_risk, kinds, approvals, expires, allow_self_approval, is_active)"
            " VALUES (%s, gen_random_uuid(), 'two', '{}', '{}', 1, 'HIGH', '{}', 2, '1s', false, true)"
        ),
        (
            "INSERT INTO registry.pending_revisions (tenant_id, pending_id, state, base_revision,"
            " plan_hash, plan, risk, source, commit, author_id, author, policies, approvals_needed,"
            " self_approval, data_key_id, wrapped_key, sealed, expires_at)"
            " SELECT tenant_id, gen_random_uuid(), 'pending', 1, '', '{}', 1, '', '', tenant_id, '{}',"
            " '{two}', 2, false, data_key_id, '', '', now() FROM registry.data_keys WHERE tenant_id = %s"
        ),
        (
            "INSERT INTO registry.pending_approvals (tenant_id, pending_id, principal_id,"
            " principal_name, note) SELECT tenant_id, pending_id, author_id, '', ''"
            " FROM registry.pending_revisions WHERE tenant_id = %s"
        ),
    ):
        await rows.execute(statement, [tenant])


async def _refuses_inserts(
    raw: Rows, rows: Rows, table: str, columns: list[str], other: object
) -> None:
    """A row of the other tenant, copied word for word, cannot be written from here."""
    name = sql.Identifier(table)
    picked = sql.SQL("SELECT to_jsonb(t)::text FROM registry.{} t WHERE tenant_id = {} LIMIT 1")
    row = await (await rows.execute(picked.format(name, sql.Literal(other)))).fetchone()
    assert row is not None
    # `seq` is only ever given by the database.
    listed = sql.SQL(", ").join(sql.Identifier(each) for each in columns if each != "seq")
    copied = sql.SQL(
        "INSERT INTO registry.{table} ({columns})"
        " SELECT {columns} FROM jsonb_populate_record(NULL::registry.{table}, {row})"
    ).format(table=name, columns=listed, row=sql.Literal(row[0]) + sql.SQL("::jsonb"))
    before = await count(rows, table)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await raw.execute(copied)
    assert await count(rows, table) == before


async def test_the_login_cannot_make_itself_more(raw: Rows) -> None:
    async with raw:
        for statement in (
            "ALTER TABLE registry.tenants NO FORCE ROW LEVEL SECURITY",
            "SET row_security = off; SELECT * FROM registry.tenants",
            "TRUNCATE registry.feed",
            "UPDATE registry.audit_events SET risk = 1",
            "DELETE FROM registry.audit_events",
            "SELECT * FROM registry.api_keys",
            "SELECT * FROM registry.platform_grants",
            "SELECT * FROM registry.key_versions",
            "INSERT INTO registry.platform_grants SELECT * FROM registry.platform_grants",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await raw.execute(statement)
