"""Runs both Alembic histories as the owner, under one lock, with errors instead of blindness."""

from collections.abc import Mapping
from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import NullPool

from migrations.roles import SERVICES, Roles, ensure

HERE = Path(__file__).parent
# Any number will do that no other program locks; two runs on one database take turns.
LOCK = 7_305_816_213


def upgrade(conninfo: str, roles: Roles, passwords: Mapping[str, str]) -> None:
    """Make the roles and bring both schemas to their heads; all of one history or nothing of it."""
    with psycopg.connect(conninfo, autocommit=True) as admin:
        admin.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        ensure(admin, roles, passwords)
        for service in SERVICES:
            _upgrade_one(conninfo, service, roles)


def status(conninfo: str) -> dict[str, tuple[str | None, str]]:
    """For each service: the database's revision and the newest one."""
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(conninfo), poolclass=NullPool
    )
    with engine.connect() as connection:
        return {service: (_current(connection, service), _head(service)) for service in SERVICES}


def _upgrade_one(conninfo: str, service: str, roles: Roles) -> None:
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(conninfo), poolclass=NullPool
    )
    with engine.begin() as connection:
        config = _config(service)
        config.attributes.update(connection=connection, roles=roles)
        command.upgrade(config, "head")


def _config(service: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(HERE / service))
    config.set_main_option("path_separator", "os")
    return config


def _head(service: str) -> str:
    head = ScriptDirectory.from_config(_config(service)).get_current_head()
    return head or ""


def _current(connection: Connection, service: str) -> str | None:
    context = MigrationContext.configure(connection, opts={"version_table_schema": service})
    return context.get_current_revision()
