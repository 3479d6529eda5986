"""A real PostgreSQL for whatever asks: one embedded server a worker, a fresh database a test.

The databases are copies of one migrated template, and hold both schemas. Connection strings come as
(tenant login, system login), the order in which `chassis.database.Database` takes them.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import settings
from psycopg.conninfo import make_conninfo

from migrations import runner
from migrations.roles import Roles
from services import embedded
from services.chassis.database import Database
from services.chassis.secret import Secret
from services.executor.engine import lanes

TEMPLATE = "template_migrated"
# Measured, without fsync: 0.04 s against 0.68 s for writing every page to the log.
COPY = "FILE_COPY"
# Measured: 1.1 s a copy on a disk, 0.1 s in memory.
IN_MEMORY = "/dev/shm"
ROOM = 2 * 2**30
Conninfos = tuple[Secret, Secret]

# How long an example takes says more of the machine than of what it shows.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


@pytest.fixture(scope="session")
def postgres() -> Iterator[embedded.Embedded]:
    """The server of this test worker."""
    # Its account must reach the state directory, which pytest's own directories do not allow.
    with tempfile.TemporaryDirectory(prefix="tenon-test-", dir=_fastest_folder()) as name:
        home = Path(name)
        home.chmod(0o755)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TENON_HOME", str(home))
            server = embedded.start(home / "state", durable=False)
        with server:
            yield server


def _fastest_folder() -> str:
    """Where files cost least: a copy of a database is a thousand of them."""
    with suppress(OSError):
        if shutil.disk_usage(IN_MEMORY).free >= ROOM:
            return IN_MEMORY
    return "/tmp"


@pytest.fixture(scope="session")
def roles() -> Roles:
    """The roles of this test worker's deployment."""
    return Roles(f"t{os.environ.get('PYTEST_XDIST_WORKER', 'master')}")


@pytest.fixture(scope="session")
def passwords(roles: Roles) -> dict[str, str]:
    """A password for each of the four logins."""
    return {login: secrets.token_urlsafe(16) for login in roles.logins()}


@pytest.fixture(scope="session")
def template(postgres: embedded.Embedded, roles: Roles, passwords: dict[str, str]) -> str:
    """The name of a database with both histories at their heads, to make copies of."""
    with psycopg.connect(postgres.conninfo().reveal_text(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {TEMPLATE}")
    runner.upgrade(postgres.conninfo(TEMPLATE).reveal_text(), roles, passwords)
    return TEMPLATE


@pytest.fixture
def superuser(postgres: embedded.Embedded, template: str) -> Iterator[Secret]:
    """The superuser's connection to this test's database: it sees through row-level security."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(postgres.conninfo().reveal_text(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY {COPY}")
        yield postgres.conninfo(name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def executor_conninfos(superuser: Secret, roles: Roles, passwords: dict[str, str]) -> Conninfos:
    """The executor's two logins in this test's database."""
    return _conninfos(superuser, roles, passwords, "executor")


@pytest.fixture
def registry_conninfos(superuser: Secret, roles: Roles, passwords: dict[str, str]) -> Conninfos:
    """The registry's two logins in this test's database."""
    return _conninfos(superuser, roles, passwords, "registry")


@pytest.fixture
async def executor_database(executor_conninfos: Conninfos) -> AsyncIterator[Database]:
    """The executor's pools on this test's database."""
    async with Database(*executor_conninfos, constraints=lanes.CONSTRAINTS) as database:
        yield database


@pytest.fixture
async def registry_database(registry_conninfos: Conninfos) -> AsyncIterator[Database]:
    """The registry's pools on this test's database."""
    async with Database(*registry_conninfos) as database:
        yield database


@pytest.fixture
def tenant_ids(superuser: Secret) -> tuple[UUID, UUID]:
    """Two enabled tenants which the executor knows, `acme` and `globex`; no objects yet."""
    ids = (uuid4(), uuid4())
    with psycopg.connect(superuser.reveal_text()) as connection:
        for tenant_id, slug in zip(ids, ("acme", "globex"), strict=True):
            connection.execute(
                "INSERT INTO executor.tenants (tenant_id, slug, enabled, revision) VALUES (%s, %s, true, 1)",
                [tenant_id, slug],
            )
    return ids


def _conninfos(
    superuser: Secret, roles: Roles, passwords: dict[str, str], service: str
) -> Conninfos:
    logins = (roles.app(service), roles.system(service))
    tenant, system = (
        Secret(make_conninfo(superuser.reveal_text(), user=login, password=passwords[login]))
        for login in logins
    )
    return tenant, system
