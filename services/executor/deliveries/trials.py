"""A test of an outbound endpoint: an event of its own, delivered to it whatever is subscribed."""

import json
from typing import Final
from uuid import UUID

from services.chassis.database import Database
from services.chassis.errors import FailedPrecondition
from services.chassis.ids import uuid7
from services.executor.deliveries.outgoing import endpoint_of
from services.executor.events import accepting
from services.executor.events.accepting import Event
from services.executor.events.routing import Route
from services.executor.registry.credentials import Secrets
from services.executor.store import delivery_pages
from services.executor.store.projected import ProjectedObject

TYPE: Final = "tenon.test"
NOBODYS: Final = ProjectedObject("Subscription", UUID(int=0), "", 0, {})
"""Routes what no subscription does."""


class Trials:
    """The use case."""

    def __init__(self, database: Database, secrets: Secrets, *, seal: bool = True) -> None:
        self._database = database
        self._secrets = secrets
        self._seal = seal

    async def send(self, tenant_id: UUID, endpoint: str) -> UUID:
        """Begin to deliver a test to an active endpoint of that name; the delivery's id.

        Raises NotFound, FailedPrecondition, and ResourceExhausted where the quota is used up.
        """
        key = await self._secrets.lease_key(tenant_id)
        async with self._database.tenant(tenant_id) as tx:
            target = await endpoint_of(tx, tenant_id, endpoint)
            if not target.spec["is_active"]:
                raise FailedPrecondition(
                    f"webhookEndpoints/{endpoint} is inactive", reason="ENDPOINT_INACTIVE"
                )
            event = _event(tenant_id, endpoint)
            drafted = accepting.draft(event, [Route(NOBODYS, target)], key, seal=self._seal)
            await accepting.accept(tx, [drafted])
            (delivery_id,) = await delivery_pages.of_event(tx, tenant_id, event.id)
        return delivery_id


def _event(tenant_id: UUID, endpoint: str) -> Event:
    event_id, payload = uuid7(), {"endpoint": endpoint}
    return Event(
        tenant_id=tenant_id,
        endpoint=None,
        type=TYPE,
        delivery_key=str(event_id),
        headers={},
        payload=payload,
        body=json.dumps(payload, separators=(",", ":")).encode(),
        id=event_id,
    )
