"""Events: accepted once, kept as they came, and routed, in one transaction."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Database, Transaction
from services.chassis.envelope import Unsealable
from services.chassis.evaluator import Evaluator
from services.chassis.ids import uuid7
from services.executor import executions
from services.executor.credentials import LeasedKey
from services.executor.executions import Run
from services.executor.sealing import Row, opened_bytes, sealed_bytes
from services.executor.store import events as store
from services.executor.store import projected
from services.executor.store.events import Kept
from services.executor.store.projected import ProjectedObject
from services.executor.subscriptions import matching

CONNECTOR: Final = "Connector"
TABLE: Final = "executor.events"
HEADERS: Final = "sealed_headers"
BODY: Final = "body"


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
    tx: Transaction,
    event: Event,
    taking: Sequence[ProjectedObject],
    key: LeasedKey,
    *,
    seal: bool = True,
) -> UUID:
    """Keep an event and start what it starts; answers with its id, if redelivered the first one's.

    All in the caller's transaction: receipt, event, executions and their work are there together.
    `seal`: its headers and body are kept sealed with the key.
    """
    endpoint_id = event.endpoint.object_id
    known = await store.receive(tx, event.tenant_id, endpoint_id, event.delivery_key, event.id)
    if known == event.id:
        await store.store(
            tx,
            _sealed(event, key) if seal else _in_clear(event),
            endpoint_id=endpoint_id,
            event_type=event.type,
            delivery_key=event.delivery_key,
        )
        await _route(tx, event, taking, key)
    return known


def opened(kept: Kept, key: LeasedKey | None) -> Kept:
    """An event in the clear; `key` is the one it was sealed with, if it was. Raises Unsealable."""
    if kept.data_key_id is None:
        return kept
    if key is None or kept.sealed_headers is None:
        raise Unsealable
    row = Row(TABLE, kept.tenant_id, kept.id)
    headers = json.loads(opened_bytes(key, row, HEADERS, kept.sealed_headers))
    return Kept(kept.tenant_id, kept.id, headers, opened_bytes(key, row, BODY, kept.body))


def as_context(event: Event) -> dict[str, Any]:
    """What expressions see as `event`."""
    return {
        "id": str(event.id),
        "type": event.type,
        "payload": event.payload,
        "headers": dict(event.headers),
    }


def _sealed(event: Event, key: LeasedKey) -> Kept:
    row = Row(TABLE, event.tenant_id, event.id)
    headers = json.dumps(dict(event.headers), separators=(",", ":")).encode()
    return Kept(
        tenant_id=event.tenant_id,
        id=event.id,
        headers={},
        body=sealed_bytes(key, row, BODY, event.body),
        data_key_id=key.data_key_id,
        sealed_headers=sealed_bytes(key, row, HEADERS, headers),
    )


def _in_clear(event: Event) -> Kept:
    return Kept(event.tenant_id, event.id, event.headers, event.body)


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
