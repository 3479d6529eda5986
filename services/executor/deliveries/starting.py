"""A delivery and its work, made in the transaction that routes the event."""

import hashlib
from uuid import UUID

from services.chassis.ids import uuid7
from services.executor.deliveries.policies import KIND, policy_of
from services.executor.engine.work import Started, WorkItem
from services.executor.registry.credentials import LeasedKey
from services.executor.sealing import Row, sealed_bytes
from services.executor.store import deliveries as store
from services.executor.store.deliveries import NewDelivery
from services.executor.store.projected import ProjectedObject

TABLE = "executor.deliveries"
BODY = "sealed_body"


def started(
    tenant_id: UUID,
    event: tuple[UUID, str],
    endpoint: ProjectedObject,
    subscription: str,
    body: bytes,
    key: LeasedKey | None,
    order: str = "",
    message_id: UUID | None = None,
) -> Started:
    """One event, by id and type, for one endpoint.

    With a key, `body` is kept sealed by it; else it is what `messages.message` makes of the event
    at any time. `order`: what goes one after the other, where the endpoint keeps an order by key.
    `message_id`: what `webhook-id` is made from, where that is not the delivery.
    """
    delivery_id = uuid7()
    sealed = None
    if key is not None:
        sealed = sealed_bytes(key, Row(TABLE, tenant_id, delivery_id), BODY, body)
    new = NewDelivery(
        tenant_id=tenant_id,
        id=delivery_id,
        event_id=event[0],
        event_type=event[1],
        endpoint_id=endpoint.object_id,
        endpoint=endpoint.name,
        subscription=subscription,
        payload_hash=hashlib.sha256(body).digest(),
        data_key_id=key.data_key_id if key is not None else None,
        sealed_body=sealed,
        message_id=message_id,
        order_key=order,
    )
    return Started(work(delivery_id, endpoint, order), [store.adding(new)])


def work(delivery_id: UUID, endpoint: ProjectedObject, order: str = "") -> WorkItem:
    """The work of a delivery."""
    policy = policy_of(endpoint.spec)
    return WorkItem(KIND, endpoint.object_id, delivery_id, key=order, policy=policy)
