"""Integrations, read."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from services.chassis.database import Database
from services.chassis.errors import NotFound
from services.registry.store import objects


@dataclass(frozen=True, slots=True)
class Filters:
    """What a list is narrowed to; None lets everything pass."""

    provider: str | None = None
    environment: str | None = None
    is_primary: bool | None = None
    is_active: bool | None = None


class Integrations:
    """The use cases on integrations."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, tenant_id: UUID, name: str) -> Any:
        """One row, with the credential's name."""
        rows = await self._database.read(
            tenant_id, objects.GET_INTEGRATION, tenant_id=tenant_id, name=name
        )
        if not rows:
            raise NotFound(f"there is no integration {name}")
        return rows[0]

    async def page(self, tenant_id: UUID, after: str, size: int, filters: Filters) -> list[Any]:
        """Rows by name."""
        return await self._database.read(
            tenant_id,
            objects.LIST_INTEGRATIONS,
            tenant_id=tenant_id,
            after=after,
            size=size,
            provider=filters.provider,
            environment=filters.environment,
            is_primary=filters.is_primary,
            is_active=filters.is_active,
        )
