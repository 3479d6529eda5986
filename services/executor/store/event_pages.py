"""Events as people read them: page by page, the newest first, and what each has begun."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Integer, String, Uuid, bindparam, select

from services.chassis.database import Bound, Database, Statement
from services.executor.store import sync_pages
from services.executor.store.delivery_pages import OF_EVENT
from services.executor.store.events import KEPT, Kept, kept
from services.executor.store.projected import ALL_OF, ProjectedObject
from services.executor.tables import EVENTS, EXECUTIONS
from services.executor.tables import PROJECTED_OBJECTS as OBJECTS


@dataclass(frozen=True, slots=True)
class Noted:
    """An event without what it says."""

    id: UUID
    type: str
    endpoint_id: UUID
    delivery_key: str
    received_at: datetime


@dataclass(frozen=True, slots=True)
class Begun:
    """What an event has begun, the oldest first, and what is wanted of events now, by name."""

    deliveries: tuple[UUID, ...]
    executions: tuple[UUID, ...]
    sync_runs: tuple[UUID, ...]
    subscriptions: tuple[ProjectedObject, ...]
    endpoints: tuple[ProjectedObject, ...]
    connectors: tuple[ProjectedObject, ...]
    streams: tuple[ProjectedObject, ...]


_COLUMNS = [EVENTS.c[each.name] for each in fields(Noted)]
_MINE = EVENTS.c.tenant_id == bindparam("tenant_id", type_=Uuid)
_PAGE = (
    select(*_COLUMNS)
    .where(_MINE, EVENTS.c.id < bindparam("before", type_=Uuid))
    .order_by(EVENTS.c.id.desc())
    .limit(bindparam("limit", type_=Integer))
)
PAGE: Final = Statement(_PAGE)
PAGE_OF_TYPE: Final = Statement(_PAGE.where(EVENTS.c.type == bindparam("type", type_=String)))
GET: Final = Statement(select(*_COLUMNS).where(_MINE, EVENTS.c.id == bindparam("id", type_=Uuid)))
CAME_BY: Final = Statement(
    select(*(OBJECTS.c[each.name] for each in fields(ProjectedObject))).where(
        OBJECTS.c.tenant_id == bindparam("tenant_id", type_=Uuid),
        OBJECTS.c.kind == "WebhookEndpoint",
        OBJECTS.c.object_id
        == select(EVENTS.c.endpoint_id)
        .where(_MINE, EVENTS.c.id == bindparam("id", type_=Uuid))
        .scalar_subquery(),
    )
)
RUNS: Final = Statement(
    select(EXECUTIONS.c.id)
    .where(
        EXECUTIONS.c.tenant_id == bindparam("tenant_id", type_=Uuid),
        EXECUTIONS.c.trigger_id == bindparam("event_id", type_=Uuid),
        EXECUTIONS.c.trigger_kind == "event",
    )
    .order_by(EXECUTIONS.c.id)
)


async def page(
    database: Database, tenant_id: UUID, event_type: str, before: UUID, limit: int
) -> list[Noted]:
    """Events before an id; of one type where it is said."""
    asked = {"tenant_id": tenant_id, "before": before, "limit": limit}
    if event_type:
        rows = await database.read(tenant_id, PAGE_OF_TYPE, type=event_type, **asked)
    else:
        rows = await database.read(tenant_id, PAGE, **asked)
    return [Noted(*row) for row in rows]


async def get(
    database: Database, tenant_id: UUID, event_id: UUID
) -> tuple[Noted | None, Kept | None, ProjectedObject | None]:
    """An event, what is kept of what it says, and the endpoint it came by, if that is there."""
    place = {"tenant_id": tenant_id, "id": event_id}
    found, said, by = await database.read_all(
        tenant_id, [Bound(GET, place), Bound(KEPT, place), Bound(CAME_BY, place)]
    )
    endpoint = ProjectedObject(*by[0]) if by else None
    return (Noted(*found[0]), kept(said[0]), endpoint) if found else (None, None, None)


async def begun(database: Database, tenant_id: UUID, event_id: UUID) -> Begun:
    """What came of an event, and what could, at one moment."""
    of_event = {"tenant_id": tenant_id, "event_id": event_id}
    kinds = ("Subscription", "WebhookEndpoint", "Connector", "Stream")
    wanted = [Bound(ALL_OF, {"tenant_id": tenant_id, "kind": kind}) for kind in kinds]
    begun = [Bound(each, of_event) for each in (OF_EVENT, RUNS, sync_pages.OF_EVENT)]
    deliveries, runs, transfers, *objects = await database.read_all(tenant_id, [*begun, *wanted])
    ids = (_ids(deliveries), _ids(runs), _ids(transfers))
    return Begun(*ids, *map(_objects, objects))


def _ids(rows: Sequence[Any]) -> tuple[UUID, ...]:
    return tuple(row.id for row in rows)


def _objects(rows: Sequence[Any]) -> tuple[ProjectedObject, ...]:
    return tuple(ProjectedObject(*row) for row in rows)
