"""Events: accepted once, kept as they came, and routed, in one transaction.

Webhooks share theirs with others' (`intake`); what a service publishes together has one of its own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from services.chassis import strict_json
from services.chassis.database import Transaction
from services.chassis.envelope import Unsealable
from services.chassis.errors import TenonError
from services.chassis.evaluator import Evaluator
from services.chassis.ids import uuid7
from services.executor.engine import lanes
from services.executor.engine.work import Started
from services.executor.events import routing
from services.executor.events.routing import Route, Subscribed, Told
from services.executor.registry.credentials import LeasedKey
from services.executor.sealing import Row, opened_bytes, sealed_bytes
from services.executor.store import events as store
from services.executor.store.events import Arriving, Kept
from services.executor.store.projected import ProjectedObject

PUBLISHED: Final = UUID(int=0)
"""In place of the endpoint of an event that came by none."""
OF_BODY: Final = "sha256:"
"""Begins the key of an event that has no id: what its body is."""
TABLE: Final = "executor.events"
HEADERS: Final = "sealed_headers"
BODY: Final = "body"
BOTH: Final = "headers and body"
"""What stands in `body` where there are no sealed headers: both, sealed as one. To seal them apart,
as was done before, costs twice: a tenth of all that an event costs (measured)."""
_LENGTH: Final = 4
"""Bytes before the headers that say how long they are."""
# `dumps` makes one at each call that does not take its defaults.
_WRITER: Final = json.JSONEncoder(separators=(",", ":"))


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


async def taken_by(event: Event, to: Subscribed, evaluator: Evaluator) -> list[Route]:
    """Where an event goes. Raises Unavailable.

    Outside any transaction: a filter may have to wait for its turn.
    """
    context = as_context(event)
    view = evaluator.seeing({"event": context}, event.tenant_id)
    return await routing.routes(to, context, view)


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """An event, and what it starts where it is new.

    With `as_of` it is kept only if its tenant was last projected then.
    """

    event: Event
    kept: Kept
    starts: Sequence[Started]
    as_of: datetime | None = None

    @property
    def arriving(self) -> Arriving:
        """It, as it comes into the store."""
        event = self.event
        return Arriving(self.kept, event.endpoint_id, event.type, event.delivery_key, self.as_of)


def draft(
    event: Event,
    taking: Sequence[Route],
    key: LeasedKey,
    *,
    seal: bool = True,
    as_of: datetime | None = None,
) -> Draft:
    """Make up what is to be written of an event, and of what it starts.

    `seal`: its headers and body are kept sealed with the key. `as_of`: when the tenant was
    projected whose routes these are, where that is still to be checked.
    """
    kept = _sealed(event, key) if seal else _in_clear(event)
    return Draft(event, kept, _started(event, taking, key), as_of)


def _started(event: Event, taking: Sequence[Route], key: LeasedKey) -> list[Started]:
    if not taking:
        # Most events start nothing.
        return []
    told = Told(event.tenant_id, event.id, as_context(event), event.body)
    return routing.started(told, taking, key)


def place(draft: Draft) -> tuple[int, int, str]:
    """Where an event stands in the one order in which all wait for each other's receipts."""
    event = draft.event
    # Numbers: ids compare by a function of theirs, a hundred times and more for a group.
    return event.tenant_id.int, event.endpoint_id.int, event.delivery_key


async def accept(tx: Transaction, drafts: Sequence[Draft]) -> list[UUID]:
    """Keep a tenant's events and start what they start, in the caller's transaction.

    Answers with their ids, in order; of one that was delivered before with the first one's. Raises
    Aborted where somebody else takes the same event in at this moment.
    """
    ordered = sorted(drafts, key=place)
    (rows,) = await tx.pipeline([store.accepting([each.arriving for each in ordered])])
    answers = dict(zip(ordered, rows, strict=True))
    known, begun = list[UUID](), list[Started]()
    for each in drafts:
        whose = store.accepted(answers[each])
        if isinstance(whose, TenonError):
            raise whose
        known.append(whose)
        begun += each.starts if whose == each.event.id else ()
    if begun:
        # One for all: a second would want lanes while holding the tenant lane.
        await lanes.begin(tx, drafts[0].event.tenant_id, begun)
    return known


def opened(kept: Kept, key: LeasedKey | None) -> Kept:
    """An event in the clear; `key` is the one it was sealed with, if it was. Raises Unsealable."""
    if kept.data_key_id is None:
        return kept
    headers, body = _parts(kept, key)
    return Kept(kept.tenant_id, kept.id, json.loads(headers), body)


def opened_body(kept: Kept, key: LeasedKey | None) -> bytes:
    """An event's body alone in the clear. Raises Unsealable."""
    return kept.body if kept.data_key_id is None else _parts(kept, key)[1]


def _parts(kept: Kept, key: LeasedKey | None) -> tuple[bytes, bytes]:
    """Headers, as JSON, and body of an event that is sealed."""
    if key is None:
        raise Unsealable
    row = Row(TABLE, kept.tenant_id, kept.id)
    if kept.sealed_headers is not None:
        headers = opened_bytes(key, row, HEADERS, kept.sealed_headers)
        return headers, opened_bytes(key, row, BODY, kept.body)
    both = opened_bytes(key, row, BOTH, kept.body)
    end = _LENGTH + int.from_bytes(both[:_LENGTH])
    return both[_LENGTH:end], both[end:]


def event_of(
    opened: Kept, event_type: str, endpoint: ProjectedObject | None = None, delivery_key: str = ""
) -> Event:
    """An event as it was when it was routed, of what is kept of it."""
    return Event(
        tenant_id=opened.tenant_id,
        endpoint=endpoint,
        type=event_type,
        delivery_key=delivery_key,
        headers=opened.headers,
        payload=_payload(opened.body),
        body=opened.body,
        id=opened.id,
    )


def as_context(event: Event) -> dict[str, Any]:
    """What expressions see as `event`."""
    return {
        "id": str(event.id),
        "type": event.type,
        "payload": event.payload,
        "headers": dict(event.headers),
    }


def _payload(body: bytes) -> object:
    try:
        return strict_json.parse(body)
    except ValueError:
        return None


def _sealed(event: Event, key: LeasedKey) -> Kept:
    row = Row(TABLE, event.tenant_id, event.id)
    headers = _WRITER.encode(dict(event.headers)).encode()
    both = len(headers).to_bytes(_LENGTH) + headers + event.body
    sealed = sealed_bytes(key, row, BOTH, both)
    return Kept(event.tenant_id, event.id, {}, sealed, key.data_key_id)


def _in_clear(event: Event) -> Kept:
    return Kept(event.tenant_id, event.id, event.headers, event.body)
