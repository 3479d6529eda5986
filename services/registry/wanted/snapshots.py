"""A tenant's wanted state at one moment."""

from dataclasses import dataclass
from uuid import UUID

from services.chassis.database import Database
from services.registry.store import objects, revisions, tenants
from services.registry.wanted.objects import Complete, Tenant


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything wanted of one tenant at one revision."""

    tenant: Tenant
    objects: list[Complete]


class Snapshots:
    """Reads wanted state and its history."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, tenant_id: UUID) -> Snapshot:
        """All of it, inside one REPEATABLE READ transaction."""
        async with self._database.snapshot(tenant_id) as transaction:
            row = await tenants.read(transaction, tenant_id)
            found = await objects.everything(transaction, tenant_id)
        tenant = Tenant(
            row.tenant_id,
            row.slug,
            row.display_name,
            row.enabled,
            row.limits,
            row.revision,
            draining=row.state == "draining",
        )
        return Snapshot(tenant, found)

    async def revisions(self, tenant_id: UUID, before: int, size: int) -> list[object]:
        """Rows of revisions below a number, the newest first."""
        return await self._database.read(
            tenant_id, revisions.LIST_REVISIONS, tenant_id=tenant_id, before=before, size=size
        )
