"""Events as they arrived, and the receipts by which a redelivery is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import and_, bindparam, cast, func, select, true
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.elements import ColumnElement

from services.chassis.database import Bound, Database, Statement
from services.chassis.errors import NotFound
from services.executor.tables import EVENT_RECEIPTS as RECEIPTS
from services.executor.tables import EVENTS, TENANTS

_THE_RECEIPT = and_(
    *(RECEIPTS.c[name] == bindparam(name) for name in ("tenant_id", "endpoint_id")),
    RECEIPTS.c.key == bindparam("delivery_key"),
)
_RECEIPT = {
    "tenant_id": "tenant_id",
    "endpoint_id": "endpoint_id",
    "key": "delivery_key",
    "event_id": "id",
}
_STORED = (
    *("tenant_id", "id", "endpoint_id", "type", "delivery_key", "headers", "body"),
    *("data_key_id", "sealed_headers"),
)


def _given(name: str) -> ColumnElement[Any]:
    return cast(bindparam(name, type_=EVENTS.c[name].type), EVENTS.c[name].type)


def _accept() -> Statement:
    """Takes the receipt and keeps the event where it is the first of its key, in an enabled tenant.

    Answers with whose receipt it is, and whether the tenant is enabled. A receipt that somebody
    took during this very statement is not seen by it.
    """
    enabled = select(TENANTS.c.enabled).where(TENANTS.c.tenant_id == bindparam("tenant_id"))
    taken = insert(RECEIPTS).from_select(
        list(_RECEIPT),
        select(*map(_given, _RECEIPT.values())).where(enabled.scalar_subquery()),
    )
    first = taken.on_conflict_do_nothing().returning(RECEIPTS.c.event_id).cte("first")
    event = select(*map(_given, _STORED)).select_from(first)
    kept = insert(EVENTS).from_select(list(_STORED), event).returning(EVENTS.c.id).cte("kept")
    whose = func.coalesce(
        select(first.c.event_id).scalar_subquery(),
        select(RECEIPTS.c.event_id).where(_THE_RECEIPT).scalar_subquery(),
    )
    answer = select(whose.label("event_id"), enabled.scalar_subquery().label("enabled"))
    return Statement(answer.add_cte(kept))


ACCEPT = _accept()
RECEIVED = Statement(select(RECEIPTS.c.event_id, true().label("enabled")).where(_THE_RECEIPT))
_KEPT = ("tenant_id", "id", "headers", "body", "data_key_id", "sealed_headers")
KEPT = Statement(
    select(*(EVENTS.c[name] for name in _KEPT)).where(
        EVENTS.c.tenant_id == bindparam("tenant_id"), EVENTS.c.id == bindparam("id")
    )
)


@dataclass(frozen=True, slots=True)
class Kept:
    """An event's headers and body at rest.

    With a data key both are sealed: `headers` is empty then, and `body` ciphertext.
    """

    tenant_id: UUID
    id: UUID
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    data_key_id: UUID | None = None
    sealed_headers: bytes | None = field(default=None, repr=False)


def accepting(kept: Kept, *, endpoint_id: UUID, event_type: str, delivery_key: str) -> Bound:
    """Keeps an event unless its delivery is known; `accepted` takes the answer.

    Of two at once the second waits for the first's transaction.
    """
    place = {"endpoint_id": endpoint_id, "type": event_type, "delivery_key": delivery_key}
    said = {name: getattr(kept, name) for name in _KEPT}
    return Bound(ACCEPT, {**said, **place, "headers": dict(kept.headers)})


def looking_again(accepting: Bound) -> Bound:
    """Reads whose the receipt of a delivery is that somebody else took at the same moment."""
    return Bound(RECEIVED, accepting.parameters)


def accepted(rows: Sequence[Any]) -> UUID | None:
    """Whose receipt a delivery has: the new event's, the first one's, or not seen yet (None).

    Raises NotFound where the tenant has been disabled since its endpoint was looked up.
    """
    if not (rows and rows[0].enabled):
        raise NotFound("the tenant is disabled")
    found: UUID | None = rows[0].event_id
    return found


async def find(database: Database, tenant_id: UUID, event_id: UUID) -> Kept | None:
    """What is kept of an event's headers and body."""
    rows = await database.read(tenant_id, KEPT, tenant_id=tenant_id, id=event_id)
    return kept(rows[0]) if rows else None


def kept(row: Any) -> Kept:
    """What a row of events keeps of its headers and body."""
    return Kept(**{name: getattr(row, name) for name in _KEPT})
