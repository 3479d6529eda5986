"""Credentials in full: key versions with states, replaceable data keys, status, use, venues."""

from collections.abc import Iterable

from alembic import context, op

from migrations.registry import credentials
from migrations.registry.permissions import give, take
from migrations.tenancy import Tenancy, drop

revision = "r0002"
down_revision = "r0001"

PERMISSIONS = {
    "credentials.manage": "Rotate, revoke and shred credentials",
    "credentials.reveal": "Be told a webhook secret that Tenon made",
    "credentials.refresh": "Have a credential's tokens refreshed now",
    "credentials.report": "Say how credentials were used",
    "connections.read": "See connected accounts",
    "connections.manage": "Connect and disconnect accounts",
    "connections.relay": "Hand on what browsers bring to the ingress",
    "vault.read": "See the versions of the key-encryption key",
    "vault.manage": "Rotate keys, and give them up",
}
READ = ("connections.read",)
MANAGE = (*READ, "credentials.refresh")
ADMINISTER = (*MANAGE, "connections.manage", "credentials.manage", "credentials.reveal")
ADMINISTER_ALL = (*ADMINISTER, "vault.read", "vault.manage")
GRANTED = {
    "VIEWER": READ,
    "MANAGER": MANAGE,
    "ADMIN": ADMINISTER,
    "SUPER_ADMIN": ADMINISTER_ALL,
    "STAFF_DEVELOPER": ("vault.read",),
    "STAFF_ADMIN": ("vault.read",),
    "STAFF_OWNER": ADMINISTER_ALL,
    "EXECUTOR": ("credentials.report", "credentials.refresh", "connections.relay"),
}


def upgrade() -> None:
    """Make the tables, widen those that are there, and give out the new permissions."""
    tenancy = Tenancy("registry", context.config.attributes["roles"])
    tenancy.make(credentials.GLOBAL, {"registry.venues": credentials.TENANT["registry.venues"]})
    widened = (*credentials.WIDENED, "registry.venues")
    _force(widened, "NO FORCE")
    for statement in (*credentials.WIDEN, *credentials.FILL, *credentials.CLOSE):
        op.execute(statement)
    rest = {name: made for name, made in credentials.TENANT.items() if name != "registry.venues"}
    tenancy.make({}, rest)
    _force(["registry.credential_status"], "NO FORCE")
    for statement in (*credentials.GUARDS, *credentials.INDEXES):
        op.execute(statement)
    _force((*widened, "registry.credential_status"), "FORCE")
    for table, verbs in credentials.MORE_VERBS.items():
        tenancy.widen(table, verbs)
    for table in ("registry.key_versions", "registry.platform_answers"):
        tenancy.open_global(table)
    give(PERMISSIONS, GRANTED)


def downgrade() -> None:
    """Take the tables and columns away again; what only they held is lost."""
    for statement in credentials.UNGUARD:
        op.execute(statement)
    drop(name for name in credentials.TENANT if name != "registry.venues")
    _force(credentials.WIDENED, "NO FORCE")
    for statement in credentials.NARROW:
        op.execute(statement)
    _force(credentials.WIDENED, "FORCE")
    drop(credentials.GLOBAL, ("registry.venues",))
    take(PERMISSIONS)


def _force(tables: Iterable[str], how: str) -> None:
    """Let the owner see every row, for a backfill and for validation, or nobody any more."""
    for table in tables:
        op.execute(f"ALTER TABLE {table} {how} ROW LEVEL SECURITY")
