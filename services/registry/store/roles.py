"""What the built-in roles allow."""

from collections.abc import Mapping

from sqlalchemy import bindparam, func, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import Text

from services.chassis.database import Database, Statement
from services.registry import tables as t
from services.registry.access.roles import BOUND_IN_TENANTS

_RP = t.role_permissions.c
ALLOWED = Statement(
    select(_RP.role, func.array_agg(_RP.permission).label("permissions"))
    .where(_RP.role == func.any(bindparam("roles", type_=ARRAY(Text))))
    .group_by(_RP.role)
)


class BuiltInRoles:
    """Reads them once: only a migration changes what they allow."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: Mapping[str, frozenset[str]] | None = None

    async def allowed(self) -> Mapping[str, frozenset[str]]:
        """The permissions of each built-in role that a tenant may bind."""
        if self._known is None:
            async with self._database.system() as transaction:
                rows = await transaction.all(ALLOWED, roles=list(BOUND_IN_TENANTS))
            self._known = {row.role: frozenset(row.permissions) for row in rows}
        return self._known
