"""What has ended is delivered again: one delivery, or all that an endpoint has not taken.

It goes to the endpoint as it is now, with the same `webhook-id` and, while that is kept, the same
bytes; its attempts go on counting, its schedule of tries begins anew. Where an endpoint keeps an
order by key, it goes behind what waits of its key by now, and what comes after it waits for it.
"""

import logging
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from services.chassis import pages
from services.chassis.database import Database, Transaction
from services.chassis.errors import FailedPrecondition, NotFound
from services.chassis.ids import uuid7_floor
from services.executor.audit.outbox import Deed, Doer, telling
from services.executor.deliveries.outgoing import endpoint_of
from services.executor.deliveries.starting import work
from services.executor.engine import lanes
from services.executor.engine.work import WorkItem
from services.executor.store import delivery_agains as store
from services.executor.store import projected
from services.executor.store.delivery_agains import Missed, TakenUp
from services.executor.store.delivery_pages import Delivery
from services.executor.store.projected import ProjectedObject

log = logging.getLogger(__name__)

BATCH: Final = 500
BATCHES: Final = 10
"""Of one call; the rest is another call's, so that none lasts too long for its caller."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What an endpoint is to get again: all that is dead or failed and was made since."""

    tenant_id: UUID
    endpoint: str
    since: datetime
    page_token: str = ""


@dataclass(frozen=True, slots=True)
class Recovered:
    """How many are on their way again, and the token for the rest."""

    count: int
    next_page_token: str


class Again:
    """The use cases."""

    def __init__(self, database: Database, batch: int = BATCH) -> None:
        self._database = database
        self._batch = batch

    async def retry(self, tenant_id: UUID, delivery_id: UUID, doer: Doer) -> Delivery:
        """Deliver again what has ended, whatever came of it. Raises NotFound, FailedPrecondition.

        ResourceExhausted where the tenant's quota is used up.
        """
        async with self._database.tenant(tenant_id) as tx:
            taken = await store.one(tx, tenant_id, delivery_id)
            if taken is None:
                raise await _not_ended(tx, tenant_id, delivery_id)
            found, going = taken
            endpoint = await _endpoint_of(tx, tenant_id, found)
            deed = Deed("Delivery", "retry", found.endpoint, delivery_id)
            told = telling(tenant_id, doer, deed)
            await lanes.enqueue(tx, tenant_id, [_work(going, endpoint)], [told])
        return found

    async def recover(self, what: Recovery, doer: Doer) -> Recovered:
        """Deliver again what an endpoint has missed, the oldest first, batch by batch.

        Each batch is a transaction of its own. Whoever is cut short calls again: what is on its way
        is neither dead nor failed any more. Raises NotFound, FailedPrecondition, ResourceExhausted.
        """
        endpoint = await endpoint_of(self._database, what.tenant_id, what.endpoint)
        marks = (str(what.tenant_id), str(endpoint.object_id), what.since.isoformat())
        after = pages.after_of(what.page_token, *marks)
        since = _next(UUID(after)) if after else uuid7_floor(what.since)
        left = Missed(what.tenant_id, endpoint.object_id, endpoint.name, since)
        count = 0
        for _ in range(BATCHES):
            taken = await self._recovered(left, endpoint, what.since, doer)
            count += len(taken)
            if len(taken) < self._batch:
                return Recovered(count, "")
            # What fails again meanwhile is not taken up twice.
            left = replace(left, since=_next(taken[-1].id))
        return Recovered(count, pages.next_token(str(taken[-1].id), *marks))

    async def _recovered(
        self, what: Missed, endpoint: ProjectedObject, since: datetime, doer: Doer
    ) -> list[TakenUp]:
        """Take up one batch, in order."""
        async with self._database.tenant(what.tenant_id) as tx:
            taken = await store.missed(tx, what, self._batch)
            if taken:
                said = {"count": len(taken), "since": since.isoformat().replace("+00:00", "Z")}
                deed = Deed("Delivery", "recover", endpoint.name, endpoint.object_id, said)
                told = telling(what.tenant_id, doer, deed)
                items = [_work(each, endpoint) for each in taken]
                await lanes.enqueue(tx, what.tenant_id, items, [told])
        if taken:
            log.warning("%d deliveries to endpoint %s go again", len(taken), endpoint.name)
        return taken


def _work(going: TakenUp, endpoint: ProjectedObject) -> WorkItem:
    return work(going.id, endpoint, going.order_key)


async def _endpoint_of(tx: Transaction, tenant_id: UUID, delivery: Delivery) -> ProjectedObject:
    found = await projected.one(tx, tenant_id, "WebhookEndpoint", delivery.endpoint)
    # One that has the name by now is another customer's, maybe.
    if found is None or found.object_id != delivery.endpoint_id:
        raise FailedPrecondition(
            f"webhookEndpoints/{delivery.endpoint}, where it was to go, is gone",
            reason="ENDPOINT_GONE",
        )
    return found


async def _not_ended(
    tx: Transaction, tenant_id: UUID, delivery_id: UUID
) -> NotFound | FailedPrecondition:
    if await store.is_there(tx, tenant_id, delivery_id):
        return FailedPrecondition(
            f"deliveries/{delivery_id} is on its way", reason="DELIVERY_UNDER_WAY"
        )
    return NotFound(f"deliveries/{delivery_id} does not exist")


def _next(delivery_id: UUID) -> UUID:
    return UUID(int=delivery_id.int + 1)
