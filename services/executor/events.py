"""Events: accepted once, kept as they came, and routed, in one transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Database, Transaction
from services.chassis.evaluator import Evaluator
from services.chassis.ids import uuid7
from services.executor import executions
from services.executor.executions import Run
from services.executor.registry import LeasedKey
from services.executor.store import events as store
from services.executor.store import projected
from services.executor.store.projected import ProjectedObject
from services.executor.subscriptions import matching

CONNECTOR: Final = "Connector"


@dataclass(frozen=True, slots=True)
class Event:
    """One verified webhook.

    `headers` are the kept ones, in lower case; `payload` is what `body`, as it came, says in JSON,
    None where it is not JSON.
    """

    tenant_id: UUID
    endpoint: ProjectedObject
    type: str
    delivery_key: str
    headers: Mapping[str, str]
    payload: object = field(repr=False)
    body: bytes = field(repr=False)
    id: UUID = field(default_factory=uuid7)


async def taken_by(database: Database, event: Event, evaluator: Evaluator) -> list[ProjectedObject]:
    """The subscriptions that take an event. Raises Unavailable.

    Outside any transaction: a filter may have to wait for its turn.
    """
    found = await projected.subscriptions_of(database, event.tenant_id, event.endpoint.name)
    context = as_context(event)
    view = evaluator.seeing({"event": context}, event.tenant_id)
    return await matching(found, context, view)


async def accept(
    tx: Transaction, event: Event, taking: Sequence[ProjectedObject], key: LeasedKey
) -> UUID:
    """Keep an event and start what it starts; answers with its id, if redelivered the first one's.

    All in the caller's transaction: receipt, event, executions and their work are there together.
    """
    endpoint_id = event.endpoint.object_id
    known = await store.receive(tx, event.tenant_id, endpoint_id, event.delivery_key, event.id)
    if known == event.id:
        await store.store(
            tx,
            tenant_id=event.tenant_id,
            event_id=event.id,
            endpoint_id=endpoint_id,
            event_type=event.type,
            delivery_key=event.delivery_key,
            headers=event.headers,
            body=event.body,
        )
        await _route(tx, event, taking, key)
    return known


def as_context(event: Event) -> dict[str, Any]:
    """What expressions see as `event`."""
    return {
        "id": str(event.id),
        "type": event.type,
        "payload": event.payload,
        "headers": dict(event.headers),
    }


async def _route(
    tx: Transaction, event: Event, taking: Sequence[ProjectedObject], key: LeasedKey
) -> None:
    context = as_context(event)
    runs = [await _run(tx, event, subscription, context) for subscription in taking]
    await executions.start_all(tx, [run for run in runs if run is not None], key)


async def _run(
    tx: Transaction, event: Event, subscription: ProjectedObject, context: dict[str, Any]
) -> Run | None:
    """What a subscription starts; nothing if its connector is inactive."""
    name = subscription.spec["connector"]
    connector = await projected.one(tx, event.tenant_id, CONNECTOR, name)
    if connector is None or not connector.spec["is_active"]:
        return None
    return Run(
        tenant_id=event.tenant_id,
        connector=connector,
        trigger_kind="event",
        trigger_id=event.id,
        event_type=event.type,
        subscription=subscription.name,
        input={"event": context, "input": {}},
    )
