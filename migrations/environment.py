"""What both histories' env.py do: act as the owner, in this transaction, never blind."""

from alembic import context
from sqlalchemy import text

from migrations.roles import Roles

# row_security = off turns rows hidden by FORCE into an error instead of a silent nothing.
GUARDS = (
    "SET LOCAL row_security = off",
    "SET LOCAL lock_timeout = '4s'",
    "SET LOCAL statement_timeout = '60s'",
)


def run(schema: str) -> None:
    """Run the history of one schema on the connection that the runner hands over."""
    connection = context.config.attributes["connection"]
    roles: Roles = context.config.attributes["roles"]
    database = connection.execute(text("SELECT current_database()")).scalar_one()
    connection.execute(text(f'GRANT CREATE ON DATABASE "{database}" TO {roles.owner}'))
    connection.execute(text(f"SET LOCAL ROLE {roles.owner}"))
    for guard in GUARDS:
        connection.execute(text(guard))
    connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {schema}"))
    context.configure(connection=connection, version_table_schema=schema, transactional_ddl=True)
    context.run_migrations()
