"""The roles of one deployment: an owner that cannot log in, and four logins that own nothing.

PostgreSQL's roles belong to the whole cluster, so each deployment has a prefix. Every service has
two logins: its own, held inside one tenant by row-level security, and a system one for what
precedes or spans tenants, on the closed list of `migrations.tenancy`. None is a member of another,
none may bypass row-level security.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from psycopg import Connection, sql

SERVICES = ("registry", "executor")
# A writing transaction longer than this would hold back every feed position of the cluster.
TRANSACTION_LIMIT = "5s"
IDLE_LIMIT = "5s"


@dataclass(frozen=True, slots=True)
class Roles:
    """The names of one deployment's roles."""

    prefix: str = "tenon"

    @property
    def owner(self) -> str:
        """Owns every object; migrations act as it."""
        return f"{self.prefix}_owner"

    def app(self, service: str) -> str:
        """The login that works inside one tenant."""
        return f"{self.prefix}_{service}"

    def system(self, service: str) -> str:
        """The login for the closed list."""
        return f"{self.prefix}_{service}_system"

    def logins(self) -> tuple[str, ...]:
        """All four."""
        return tuple(
            role for service in SERVICES for role in (self.app(service), self.system(service))
        )


def ensure(connection: Connection, roles: Roles, passwords: Mapping[str, str]) -> None:
    """Make what is absent and set the logins' passwords (by login name); safe to repeat."""
    _create(connection, roles.owner, "NOLOGIN NOINHERIT")
    connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(roles.owner)))
    for login in roles.logins():
        _create(
            connection, login, "LOGIN NOINHERIT NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE"
        )
        if login in passwords:
            _set_password(connection, login, passwords[login])
        _set_limits(connection, login)


def _create(connection: Connection, role: str, options: str) -> None:
    found = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone()
    if not found:
        connection.execute(sql.SQL("CREATE ROLE {} " + options).format(sql.Identifier(role)))


def _set_password(connection: Connection, login: str, password: str) -> None:
    """Send only the SCRAM verifier, so that no log and no statistics view can hold the password."""
    verifier = connection.pgconn.encrypt_password(
        password.encode(), login.encode(), b"scram-sha-256"
    ).decode()
    statement = sql.SQL("ALTER ROLE {} PASSWORD {}")
    connection.execute(statement.format(sql.Identifier(login), sql.Literal(verifier)))


def _set_limits(connection: Connection, login: str) -> None:
    # Before version 17 PostgreSQL can only limit each statement.
    modern = connection.info.server_version >= 170000
    limits = {
        "idle_in_transaction_session_timeout": IDLE_LIMIT,
        "transaction_timeout" if modern else "statement_timeout": TRANSACTION_LIMIT,
    }
    for name, value in limits.items():
        statement = sql.SQL("ALTER ROLE {} SET {} = {}")
        connection.execute(
            statement.format(sql.Identifier(login), sql.Identifier(name), sql.Literal(value))
        )
