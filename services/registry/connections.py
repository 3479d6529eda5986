"""Connections, read."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from services.chassis.database import Database
from services.chassis.errors import NotFound
from services.registry.store import connections as store


@dataclass(frozen=True, slots=True)
class Filters:
    """What a list is narrowed to, by names; empty lets everything pass."""

    integration: str = ""
    venue: str = ""
    user: str = ""


class Connections:
    """The use cases on connections as they are."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, tenant_id: UUID, name: str) -> Any:
        """One row."""
        rows = await self._database.read(tenant_id, store.GET, tenant_id=tenant_id, name=name)
        if not rows:
            raise NotFound(f"there is no connection {name}")
        return rows[0]

    async def page(self, tenant_id: UUID, after: str, size: int, filters: Filters) -> list[Any]:
        """Rows by name."""
        asked = {
            "after": after,
            "size": size,
            "integration": filters.integration,
            "venue": filters.venue,
            "of_user": filters.user,
        }
        return await self._database.read(tenant_id, store.LIST, tenant_id=tenant_id, **asked)
