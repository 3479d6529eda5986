"""What is deleted of a tenant that goes: every table that has a tenant, but the proof."""

from typing import Any

import psycopg
import pytest

from migrations.tenancy import KEPT
from services.chassis.purge import TenantRows
from services.chassis.secret import Secret
from services.executor.store import draining
from services.registry.store import purge

LISTS = {"registry": purge.ROWS, "executor": draining.ROWS}
LAST = {"registry": set[str](), "executor": {"tenants"}}
"""Deleted by itself, once nothing else is left."""


@pytest.fixture
def catalog(superuser: Secret) -> psycopg.Connection[Any]:
    """The superuser in this test's database."""
    return psycopg.connect(superuser.reveal_text(), autocommit=True)


@pytest.mark.parametrize(("schema", "rows"), LISTS.items())
def test_everything_with_a_tenant_is_deleted_or_proof(
    catalog: psycopg.Connection[Any], schema: str, rows: TenantRows
) -> None:
    with catalog:
        found = catalog.execute(
            "SELECT relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
            " WHERE relnamespace = %s::regnamespace AND relkind IN ('r', 'p')"
            " AND NOT relispartition AND attname = 'tenant_id'",
            [schema],
        ).fetchall()
    proof = {table.partition(".")[2] for table in KEPT if table.startswith(f"{schema}.")}
    assert {name for (name,) in found} == {*rows.tables, *proof, *LAST[schema]}
    assert not proof & set(rows.tables)


@pytest.mark.parametrize(("schema", "rows"), LISTS.items())
def test_what_refers_to_another_table_is_deleted_before_it(
    catalog: psycopg.Connection[Any], schema: str, rows: TenantRows
) -> None:
    with catalog:
        keys = catalog.execute(
            "SELECT s.relname, d.relname FROM pg_constraint k JOIN pg_class s ON s.oid = conrelid"
            " JOIN pg_class d ON d.oid = confrelid WHERE contype = 'f'"
            " AND s.relnamespace = %s::regnamespace AND s.oid <> d.oid",
            [schema],
        ).fetchall()
    place = {table: at for at, table in enumerate(rows.tables)}
    both = [(one, other) for one, other in keys if one in place and other in place]
    assert both
    assert [pair for pair in both if place[pair[0]] > place[pair[1]]] == []


@pytest.mark.parametrize(("schema", "rows"), LISTS.items())
def test_the_service_may_delete_all_of_it_and_no_proof(
    catalog: psycopg.Connection[Any], schema: str, rows: TenantRows, roles: Any
) -> None:
    with catalog:
        may = {
            table: catalog.execute(
                "SELECT has_table_privilege(%s, %s, 'DELETE')",
                [roles.app(schema), f"{schema}.{table}"],
            ).fetchone()
            for table in (*rows.tables, *(t.partition(".")[2] for t in KEPT if schema in t))
        }
    assert {table for table, (allowed,) in may.items() if allowed} == set(rows.tables)  # type: ignore[misc]
