"""Deliveries as people read them: page by page, the newest first, and one with its attempts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from itertools import chain, combinations
from typing import Final
from uuid import UUID

from sqlalchemy import Integer, Uuid, bindparam, select

from services.chassis.database import Bound, Database, Statement, Transaction
from services.executor.tables import DELIVERIES
from services.executor.tables import DELIVERY_ATTEMPTS as ATTEMPTS

FILTERS: Final = ("endpoint", "state")


@dataclass(frozen=True, slots=True)
class Try:
    """One attempt as it was recorded."""

    number: int
    started_at: datetime
    duration_ms: int
    response_status: int
    failure_reason: str
    response_head: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for one endpoint as it stands; `tries` only where they were asked for."""

    id: UUID
    event_id: UUID
    event_type: str
    endpoint_id: UUID
    endpoint: str
    subscription: str
    state: str
    attempts: int
    response_status: int
    failure_reason: str
    payload_hash: bytes
    created_at: datetime
    ended_at: datetime | None = None
    tries: tuple[Try, ...] = ()


COLUMNS: Final = tuple(DELIVERIES.c[each.name] for each in fields(Delivery) if each.name != "tries")
_TRY = [ATTEMPTS.c[each.name] for each in fields(Try)]
_MINE = DELIVERIES.c.tenant_id == bindparam("tenant_id", type_=Uuid)


def _list(filters: tuple[str, ...]) -> Statement:
    """A page of the newest before an id, with one condition for each filter that is set."""
    conditions = [DELIVERIES.c[name] == bindparam(name) for name in filters]
    before = DELIVERIES.c.id < bindparam("before", type_=Uuid)
    found = select(*COLUMNS).where(_MINE, before, *conditions)
    ordered = found.order_by(DELIVERIES.c.id.desc())
    return Statement(ordered.limit(bindparam("limit", type_=Integer)))


# A statement for each set of filters: one that says "or none is set" would lose the index.
LISTS: Final = {
    frozenset(filters): _list(filters)
    for filters in chain.from_iterable(combinations(FILTERS, n) for n in range(len(FILTERS) + 1))
}
GET: Final = Statement(
    select(*COLUMNS).where(_MINE, DELIVERIES.c.id == bindparam("id", type_=Uuid))
)
TRIES: Final = Statement(
    select(*_TRY)
    .where(
        ATTEMPTS.c.tenant_id == bindparam("tenant_id", type_=Uuid),
        ATTEMPTS.c.delivery_id == bindparam("id", type_=Uuid),
    )
    .order_by(ATTEMPTS.c.number)
)
OF_EVENT: Final = Statement(
    select(DELIVERIES.c.id)
    .where(_MINE, DELIVERIES.c.event_id == bindparam("event_id", type_=Uuid))
    .order_by(DELIVERIES.c.id)
)


async def page(
    database: Database, tenant_id: UUID, filters: Mapping[str, str], before: UUID, limit: int
) -> list[Delivery]:
    """Deliveries without attempts; `filters` by the endpoint's name and by state."""
    statement = LISTS[frozenset(filters)]
    rows = await database.read(
        tenant_id, statement, tenant_id=tenant_id, before=before, limit=limit, **filters
    )
    return [Delivery(*row) for row in rows]


async def get(database: Database, tenant_id: UUID, delivery_id: UUID) -> Delivery | None:
    """A delivery with its attempts, the first one first."""
    place = {"tenant_id": tenant_id, "id": delivery_id}
    rows, tries = await database.read_all(tenant_id, [Bound(GET, place), Bound(TRIES, place)])
    if not rows:
        return None
    return replace(Delivery(*rows[0]), tries=tuple(Try(*row) for row in tries))


async def of_event(tx: Transaction, tenant_id: UUID, event_id: UUID) -> list[UUID]:
    """The ids of an event's deliveries, the oldest first."""
    rows = await tx.all(OF_EVENT, tenant_id=tenant_id, event_id=event_id)
    return [row.id for row in rows]
