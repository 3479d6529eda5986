"""Both histories: up, down, up again, twice, two at once, side by side, and never blind."""

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command
from psycopg.conninfo import make_conninfo
from sqlalchemy import MetaData, create_engine
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.pool import NullPool

from migrations import runner
from migrations.roles import SERVICES, Roles
from services.embedded import Embedded
from services.executor import tables as executor_tables
from services.registry import tables as registry_tables

DIALECT = create_engine("postgresql+psycopg://").dialect
REPOSITORY = Path(__file__).parents[2]
HEADS = {"registry": "r0011", "executor": "e0012"}
SHAPE = """
    SELECT n.nspname, c.relname, c.relkind, c.relrowsecurity, c.relforcerowsecurity, c.relacl::text,
        a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
        (SELECT string_agg(pg_get_constraintdef(k.oid), ';' ORDER BY k.conname)
            FROM pg_constraint k WHERE k.conrelid = c.oid),
        (SELECT string_agg(polname, ';' ORDER BY polname) FROM pg_policy p WHERE p.polrelid = c.oid)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
    WHERE n.nspname IN ('registry', 'executor') ORDER BY 1, 2, a.attnum"""
FUNCTIONS = """
    SELECT oid::regprocedure FROM pg_proc
    WHERE pronamespace IN ('registry'::regnamespace, 'executor'::regnamespace)"""
BLIND_BACKFILL = f"""
from alembic import op

revision = "e9999"
down_revision = "{HEADS["executor"]}"


def upgrade():
    op.execute("UPDATE executor.tenants SET enabled = false")
"""
UPGRADE = """
import os
from migrations import runner
from migrations.roles import Roles

runner.upgrade(os.environ["CONNINFO"], Roles(os.environ["PREFIX"]), {})
"""

NewDatabase = Callable[[], str]


@pytest.fixture
def new_database(postgres: Embedded) -> Iterator[NewDatabase]:
    """Makes empty databases on this worker's server; answers with the superuser's conninfo."""
    names: list[str] = []
    with psycopg.connect(postgres.conninfo().reveal_text(), autocommit=True) as admin:

        def make() -> str:
            names.append(f"migrated_{secrets.token_hex(6)}")
            admin.execute(f"CREATE DATABASE {names[-1]}")
            return postgres.conninfo(names[-1]).reveal_text()

        yield make
        for name in names:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_status_tells_before_and_after(new_database: NewDatabase, roles: Roles) -> None:
    database = new_database()
    assert runner.status(database) == {service: (None, head) for service, head in HEADS.items()}
    runner.upgrade(database, roles, {})
    assert runner.status(database) == {service: (head, head) for service, head in HEADS.items()}


def test_up_down_up_comes_back_to_the_same_shape(new_database: NewDatabase, roles: Roles) -> None:
    database = new_database()
    runner.upgrade(database, roles, {})
    shape = _rows(database, SHAPE)
    assert len(shape) > 200
    for service in SERVICES:
        _downgrade(database, service, roles)
    assert _rows(database, FUNCTIONS) == []
    left = {(schema, name) for schema, name, *_ in _rows(database, SHAPE)}
    assert {name for _, name in left} == {"alembic_version", "alembic_version_pkc"}
    assert runner.status(database) == {service: (None, head) for service, head in HEADS.items()}
    runner.upgrade(database, roles, {})
    assert _rows(database, SHAPE) == shape


def test_running_twice_changes_nothing(new_database: NewDatabase, roles: Roles) -> None:
    database = new_database()
    runner.upgrade(database, roles, {})
    before = _rows(database, SHAPE), _rows(database, "SELECT xmin FROM registry.roles")
    runner.upgrade(database, roles, {})
    assert (_rows(database, SHAPE), _rows(database, "SELECT xmin FROM registry.roles")) == before


def test_two_runs_at_once_take_turns(new_database: NewDatabase, roles: Roles) -> None:
    database = new_database()
    with psycopg.connect(database, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [runner.LOCK])
        runs = [_start_upgrade(database, roles.prefix) for _ in range(2)]
        _await_waiters(holder, 2)
        assert _rows(database, SHAPE) == []
    try:
        assert [run.communicate(timeout=60)[1] for run in runs] == ["", ""]
        assert [run.returncode for run in runs] == [0, 0]
    finally:
        for run in runs:
            run.kill()
            run.wait()
    assert runner.status(database) == {service: (head, head) for service, head in HEADS.items()}


def test_two_deployments_of_one_cluster_are_apart(new_database: NewDatabase) -> None:
    ours, theirs = Roles("ours"), Roles("theirs")
    databases = {}
    for roles in (ours, theirs):
        databases[roles] = new_database()
        runner.upgrade(databases[roles], roles, dict.fromkeys(roles.logins(), "word"))
    for service in SERVICES:
        table = f"{service}.tenants"
        assert _may_read(databases[ours], ours.app(service), table)
        assert not _may_read(databases[theirs], ours.app(service), table)
        assert not _may_read(databases[theirs], ours.system(service), table)


def test_a_password_is_kept_as_a_verifier_only(new_database: NewDatabase, roles: Roles) -> None:
    database = new_database()
    other = Roles("verified")
    runner.upgrade(database, other, dict.fromkeys(other.logins(), "open sesame"))
    kept = _rows(
        database, f"SELECT rolpassword FROM pg_authid WHERE rolname = '{other.app('executor')}'"
    )
    assert kept[0][0].startswith("SCRAM-SHA-256$")


def test_a_backfill_that_would_be_blind_is_an_error(
    new_database: NewDatabase, roles: Roles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = new_database()
    runner.upgrade(database, roles, {})
    for service in SERVICES:
        shutil.copytree(runner.HERE / service, tmp_path / service)
    (tmp_path / "executor" / "versions" / "e9999_blind.py").write_text(BLIND_BACKFILL)
    monkeypatch.setattr(runner, "HERE", tmp_path)
    with pytest.raises(ProgrammingError, match="row-level security"):
        runner.upgrade(database, roles, {})
    assert runner.status(database)["executor"] == (HEADS["executor"], "e9999")


@pytest.mark.parametrize(
    ("service", "tables"),
    [("registry", registry_tables.metadata), ("executor", executor_tables.METADATA)],
    ids=SERVICES,
)
def test_the_tables_of_the_code_are_those_of_the_migrations(
    postgres: Embedded, template: str, service: str, tables: MetaData
) -> None:
    found = _rows(
        postgres.conninfo(template).reveal_text(),
        f"""
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), NOT a.attnotnull
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = '{service}'::regnamespace AND c.relkind IN ('r', 'p')
        AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped
        AND c.relname <> 'alembic_version'""",
    )
    written = [
        (table.name, column.name, _type(column.type), column.nullable)
        for table in tables.tables.values()
        for column in table.columns
    ]
    assert sorted(written) == sorted(found)


def _type(kind: Any) -> str:
    """A column's type as PostgreSQL spells it."""
    return str(kind.compile(dialect=DIALECT)).lower()


def _rows(conninfo: str, query: str) -> list[Any]:
    with psycopg.connect(conninfo) as connection:
        return connection.execute(query).fetchall()


def _downgrade(conninfo: str, service: str, roles: Roles) -> None:
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(conninfo), poolclass=NullPool
    )
    with engine.begin() as connection:
        config = runner._config(service)
        config.attributes.update(connection=connection, roles=roles)
        command.downgrade(config, "base")


def _start_upgrade(conninfo: str, prefix: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path]),
        "CONNINFO": conninfo,
        "PREFIX": prefix,
    }
    return subprocess.Popen(
        [sys.executable, "-c", UPGRADE], env=environment, stderr=subprocess.PIPE, text=True
    )


def _await_waiters(holder: psycopg.Connection[Any], count: int) -> None:
    """Return once so many wait for the lock that `holder` has."""
    query = "SELECT FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
    deadline = time.monotonic() + 60
    while holder.execute(query, [holder.info.backend_pid]).rowcount < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _may_read(conninfo: str, login: str, table: str) -> bool:
    with psycopg.connect(make_conninfo(conninfo, user=login, password="word")) as connection:
        try:
            connection.execute(f"SELECT FROM {table}")
        except psycopg.errors.InsufficientPrivilege:
            return False
        return True
