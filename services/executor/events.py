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
from services.executor import lanes, routing
from services.executor.credentials import LeasedKey
from services.executor.routing import Route, Told
from services.executor.sealing import Row, opened_bytes, sealed_bytes
from services.executor.store import events as store
from services.executor.store import projected
from services.executor.store.events import Kept
from services.executor.store.projected import ProjectedObject
from services.executor.work import Started

PUBLISHED: Final = UUID(int=0)
"""In place of the endpoint of an event that came by none."""
TABLE: Final = "executor.events"
HEADERS: Final = "sealed_headers"
BODY: Final = "body"


@dataclass(frozen=True, slots=True)
class Event:
    """One verified webhook, or what a service published: then it has no endpoint.

    `headers` are the kept ones, in lower case; `payload` is what `body`, as it came, says in JSON,
    None where it is not JSON.
    """

    tenant_id: UUID
    endpoint: ProjectedObject | None
    type: str
    delivery_key: str
    headers: Mapping[str, str]
    payload: object = field(repr=False)
    body: bytes = field(repr=False)
    id: UUID = field(default_factory=uuid7)

    @property
    def endpoint_id(self) -> UUID:
        """The endpoint it came by."""
        return PUBLISHED if self.endpoint is None else self.endpoint.object_id


async def taken_by(database: Database, event: Event, evaluator: Evaluator) -> list[Route]:
    """Where an event goes. Raises Unavailable.

    Outside any transaction: a filter may have to wait for its turn.
    """
    name = event.endpoint.name if event.endpoint is not None else ""
    found = await projected.subscriptions_of(database, event.tenant_id, name)
    context = as_context(event)
    view = evaluator.seeing({"event": context}, event.tenant_id)
    return await routing.routes(database, event.tenant_id, found, context, view)


@dataclass(frozen=True, slots=True)
class Arrived:
    """An event that is taken in, and where it goes."""

    event: Event
    taking: Sequence[Route]


async def accept(
    tx: Transaction, arrived: Sequence[Arrived], key: LeasedKey, *, seal: bool = True
) -> list[UUID]:
    """Keep a tenant's events and start what they start.

    Answers with their ids, in order; of one that was delivered before with the first one's. All in
    the caller's transaction: receipts, events, executions, deliveries and their work are there
    together. `seal`: headers and bodies are kept sealed with the key.
    """
    known, begun = list[UUID](), list[Started]()
    for each in arrived:
        event = each.event
        of_endpoint = (event.tenant_id, event.endpoint_id, event.delivery_key)
        known.append(await store.receive(tx, *of_endpoint, event.id))
        if known[-1] == event.id:
            await _keep(tx, event, key if seal else None)
            begun += await routing.started(tx, _told(event), each.taking, key)
    if begun:
        # One for all: a second would want lanes while holding the tenant lane.
        await lanes.begin(tx, arrived[0].event.tenant_id, begun)
    return known


async def _keep(tx: Transaction, event: Event, key: LeasedKey | None) -> None:
    await store.store(
        tx,
        _in_clear(event) if key is None else _sealed(event, key),
        endpoint_id=event.endpoint_id,
        event_type=event.type,
        delivery_key=event.delivery_key,
    )


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


def _told(event: Event) -> Told:
    return Told(event.tenant_id, event.id, as_context(event), event.body)
