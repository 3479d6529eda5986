"""Deliveries with their attempts: made with what routes an event, moved on under a claim."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Interval, String, and_, bindparam, case, func, null, select, update
from sqlalchemy.dialects.postgresql import insert

from services.chassis.database import Bound, Database, Statement
from services.executor.store.executions import bound
from services.executor.store.projected import WayOut, going_out, way_out
from services.executor.tables import DELIVERIES, EVENTS
from services.executor.tables import DELIVERY_ATTEMPTS as ATTEMPTS

ENDED: Final = frozenset({"success", "failed", "dead"})

_D = DELIVERIES.c
_MINE = _D.tenant_id == bindparam("tenant_id", type_=_D.tenant_id.type)
_THIS = and_(_MINE, _D.id == bindparam("id", type_=_D.id.type))
_THE = and_(
    _D.tenant_id == bindparam("the_tenant_id", type_=_D.tenant_id.type),
    _D.id == bindparam("the_id", type_=_D.id.type),
)
_NEW = (
    *("tenant_id", "id", "event_id", "event_type", "endpoint_id", "endpoint", "subscription"),
    *("state", "payload_hash", "data_key_id", "sealed_body"),
)

ADD: Final = Statement(insert(DELIVERIES).values(bound(DELIVERIES, *_NEW)))
TAKE: Final = Statement(select(DELIVERIES).where(_THIS))
EVENT_OF: Final = Statement(
    select(EVENTS).where(
        EVENTS.c.tenant_id == bindparam("tenant_id", type_=EVENTS.c.tenant_id.type),
        EVENTS.c.id == select(_D.event_id).where(_THIS).scalar_subquery(),
    )
)
ATTEMPT: Final = Statement(
    insert(ATTEMPTS)
    .values(
        {
            **bound(ATTEMPTS, "tenant_id", "delivery_id", "number", "duration_ms"),
            **bound(ATTEMPTS, "response_status", "failure_reason", "response_head"),
            "started_at": func.clock_timestamp() - bindparam("took", type_=Interval),
        }
    )
    # A try that was recorded before its claim was lost is the same try.
    .on_conflict_do_nothing()
)
MOVE: Final = Statement(
    update(DELIVERIES)
    .where(_THE)
    .values(
        state=bindparam("new_state"),
        attempts=func.greatest(_D.attempts, bindparam("number", type_=_D.attempts.type)),
        response_status=bindparam("status"),
        failure_reason=bindparam("reason"),
        ended_at=case((bindparam("ends", type_=_D.attempts.type) == 1, func.now()), else_=null()),
    )
)
END: Final = Statement(
    update(DELIVERIES)
    .where(_THE, _D.ended_at.is_(None))
    .values(
        state=bindparam("new_state"),
        failure_reason=func.coalesce(
            func.nullif(bindparam("reason", type_=String), ""), _D.failure_reason
        ),
        ended_at=func.now(),
    )
)
SENDING: Final = Statement(
    update(DELIVERIES).where(_THE, _D.ended_at.is_(None)).values(state="sending")
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try, from 1: the time it took, the answer's status (0: none), and why it failed."""

    number: int
    took: timedelta
    status: int
    reason: str
    head: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class NewDelivery:
    """One event for one endpoint; `sealed_body` is delivered instead of the event's own body."""

    tenant_id: UUID
    id: UUID
    event_id: UUID
    event_type: str
    endpoint_id: UUID
    endpoint: str
    subscription: str
    payload_hash: bytes
    data_key_id: UUID | None = None
    sealed_body: bytes | None = field(default=None, repr=False)


def adding(new: NewDelivery) -> Bound:
    """What makes a delivery; its work goes with it."""
    words = {name: getattr(new, name) for name in _NEW if name != "state"}
    return Bound(ADD, {**words, "state": "queued"})


def tried(tenant_id: UUID, delivery_id: UUID, attempt: Attempt, state: str) -> list[Bound]:
    """What keeps a try, and how the delivery stands after it."""
    row = {
        "tenant_id": tenant_id,
        "delivery_id": delivery_id,
        "number": attempt.number,
        "took": attempt.took,
        "duration_ms": int(attempt.took.total_seconds() * 1000),
        "response_status": attempt.status,
        "failure_reason": attempt.reason,
        "response_head": attempt.head,
    }
    moved = {
        "the_tenant_id": tenant_id,
        "the_id": delivery_id,
        "new_state": state,
        "number": attempt.number,
        "status": attempt.status,
        "reason": attempt.reason,
        "ends": int(state in ENDED),
    }
    return [Bound(ATTEMPT, row), Bound(MOVE, moved)]


def sending(tenant_id: UUID, delivery_id: UUID) -> Bound:
    """What says that a try is under way."""
    return Bound(SENDING, {"the_tenant_id": tenant_id, "the_id": delivery_id})


def ending(tenant_id: UUID, delivery_id: UUID, state: str, reason: str) -> Bound:
    """What ends a delivery without another try; without a `reason` that of the last try stands."""
    place = {"the_tenant_id": tenant_id, "the_id": delivery_id}
    return Bound(END, {**place, "new_state": state, "reason": reason})


async def load(
    database: Database, tenant_id: UUID, delivery_id: UUID, endpoint_id: UUID
) -> tuple[Any, Any, WayOut]:
    """A delivery and its event, None where they are gone, and the way to its endpoint."""
    place = {"tenant_id": tenant_id, "id": delivery_id}
    reads = [Bound(TAKE, place), Bound(EVENT_OF, place), *going_out(tenant_id, endpoint_id)]
    found, events, *way = await database.read_all(tenant_id, reads)
    return (found[0] if found else None), (events[0] if events else None), way_out(way)
