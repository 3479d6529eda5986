"""Deliveries that have ended and are taken up again: one alone, or what an endpoint has missed.

Their attempts go on counting; the work that goes with them is the caller's to enqueue, in the same
transaction.
"""

from dataclasses import dataclass
from operator import attrgetter
from typing import Final
from uuid import UUID

from sqlalchemy import Integer, String, Uuid, bindparam, null, or_, select, update

from services.chassis.database import Statement, Transaction
from services.executor.store.delivery_pages import COLUMNS, GET, Delivery
from services.executor.tables import DELIVERIES

_D = DELIVERIES.c
_MINE = _D.tenant_id == bindparam("the_tenant_id", type_=Uuid)
_AGAIN: Final = {"state": "queued", "ended_at": null()}

ONE: Final = Statement(
    update(DELIVERIES)
    .where(_MINE, _D.id == bindparam("the_id", type_=Uuid), _D.ended_at.is_not(None))
    .values(_AGAIN)
    .returning(*COLUMNS, _D.order_key)
)
_MISSED = (
    select(_D.id)
    .where(
        _MINE,
        # The index is by name; an endpoint that had it before is another one.
        _D.endpoint == bindparam("the_endpoint", type_=String),
        _D.endpoint_id == bindparam("the_endpoint_id", type_=Uuid),
        _D.id >= bindparam("since", type_=Uuid),
        or_(_D.state == "failed", _D.state == "dead"),
    )
    .order_by(_D.id)
    .limit(bindparam("size", type_=Integer))
    # Whoever else takes one up at this moment takes it up.
    .with_for_update(skip_locked=True)
    .cte("missed")
)
MISSED: Final = Statement(
    update(DELIVERIES)
    .where(_MINE, _D.id == _MISSED.c.id)
    .values(_AGAIN)
    .returning(_D.id, _D.order_key)
)


@dataclass(frozen=True, slots=True)
class Missed:
    """An endpoint, and from which id on its deliveries are taken up."""

    tenant_id: UUID
    endpoint_id: UUID
    endpoint: str
    since: UUID


@dataclass(frozen=True, slots=True)
class TakenUp:
    """One that goes again, and with what it keeps its order."""

    id: UUID
    order_key: str


async def one(
    tx: Transaction, tenant_id: UUID, delivery_id: UUID
) -> tuple[Delivery, TakenUp] | None:
    """Take up a delivery; None: it is not there, or has not ended."""
    row = await tx.one(ONE, the_tenant_id=tenant_id, the_id=delivery_id)
    if row is None:
        return None
    *shown, order_key = row
    return Delivery(*shown), TakenUp(delivery_id, order_key)


async def is_there(tx: Transaction, tenant_id: UUID, delivery_id: UUID) -> bool:
    """Whether there is such a delivery."""
    return bool(await tx.all(GET, tenant_id=tenant_id, id=delivery_id))


async def missed(tx: Transaction, what: Missed, size: int) -> list[TakenUp]:
    """Take up at most so many dead or failed ones, the oldest; in the order of their ids."""
    rows = await tx.all(
        MISSED,
        the_tenant_id=what.tenant_id,
        the_endpoint=what.endpoint,
        the_endpoint_id=what.endpoint_id,
        since=what.since,
        size=size,
    )
    return sorted((TakenUp(*row) for row in rows), key=attrgetter("id"))
