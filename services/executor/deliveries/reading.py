"""Deliveries as people look at them: page by page, and one with its attempts."""

from dataclasses import dataclass
from uuid import UUID

from services.chassis import pages
from services.chassis.database import Database
from services.chassis.errors import NotFound
from services.executor.store import delivery_pages as store
from services.executor.store.delivery_pages import Delivery
from services.executor.store.execution_pages import NEWEST


@dataclass(frozen=True, slots=True)
class DeliveryQuery:
    """Which deliveries to list: to an endpoint, in a state; empty does not filter."""

    tenant_id: UUID
    endpoint: str = ""
    state: str = ""
    page_size: int = 0
    page_token: str = ""


@dataclass(frozen=True, slots=True)
class DeliveryPage:
    """Deliveries, the newest first, and the token of the next page."""

    deliveries: tuple[Delivery, ...]
    next_page_token: str


class DeliveryLog:
    """The use cases."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, query: DeliveryQuery) -> DeliveryPage:
        """A page of deliveries without attempts, the newest first."""
        filters = {"endpoint": query.endpoint, "state": query.state}
        filters = {name: value for name, value in filters.items() if value}
        size = pages.page_size(query.page_size)
        marks = (str(query.tenant_id), query.endpoint, query.state)
        after = pages.after_of(query.page_token, *marks)
        before = UUID(after) if after else NEWEST
        found = await store.page(self._database, query.tenant_id, filters, before, size + 1)
        token = pages.next_token(str(found[size - 1].id), *marks) if len(found) > size else ""
        return DeliveryPage(tuple(found[:size]), token)

    async def get(self, tenant_id: UUID, delivery_id: UUID) -> Delivery:
        """A delivery with its attempts. Raises NotFound."""
        found = await store.get(self._database, tenant_id, delivery_id)
        if found is None:
            raise NotFound(f"deliveries/{delivery_id} does not exist")
        return found
