"""Deliveries with their attempts: made with what routes an event, moved on under a claim."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    Interval,
    String,
    and_,
    bindparam,
    case,
    func,
    null,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from services.chassis.database import Bound, Statement
from services.executor.store.events import Kept
from services.executor.store.executions import bound
from services.executor.store.projected import WayOut, going_out, way_out
from services.executor.tables import DELIVERIES, EVENTS
from services.executor.tables import DELIVERY_ATTEMPTS as ATTEMPTS

ENDED: Final = frozenset({"success", "failed", "dead"})

_D = DELIVERIES.c
_MINE = _D.tenant_id == bindparam("tenant_id", type_=_D.tenant_id.type)
_THE = and_(
    _D.tenant_id == bindparam("the_tenant_id", type_=_D.tenant_id.type),
    _D.id == bindparam("the_id", type_=_D.id.type),
)
_NEW = (
    *("tenant_id", "id", "event_id", "event_type", "endpoint_id", "endpoint", "subscription"),
    *("state", "payload_hash", "data_key_id", "sealed_body", "message_id", "order_key"),
)
_TAKEN = ("id", "event_type", "attempts", "ended_at", "data_key_id", "sealed_body", "message_id")
_KEPT = tuple(each.name for each in fields(Kept))

ADD: Final = Statement(insert(DELIVERIES).values(bound(DELIVERIES, *_NEW)))
# A delivery that has a body of its own needs none of its event.
TAKE: Final = Statement(
    select(
        *(_D[name] for name in _TAKEN),
        _D.event_id.label("of_event"),
        *(EVENTS.c[name].label(f"event_{name}") for name in _KEPT),
    )
    .select_from(
        DELIVERIES.outerjoin(
            EVENTS,
            and_(
                EVENTS.c.tenant_id == _D.tenant_id,
                EVENTS.c.id == _D.event_id,
                _D.sealed_body.is_(None),
            ),
        )
    )
    .where(_MINE, _D.id == func.any(bindparam("ids", type_=ARRAY(_D.id.type))))
)
_ATTEMPT = (
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
TRIED: Final = Statement(
    update(DELIVERIES)
    .where(
        _D.tenant_id == bindparam("tenant_id", type_=_D.tenant_id.type),
        _D.id == bindparam("delivery_id", type_=_D.id.type),
    )
    .values(
        state=bindparam("new_state"),
        attempts=func.greatest(_D.attempts, bindparam("number", type_=_D.attempts.type)),
        response_status=bindparam("response_status"),
        failure_reason=bindparam("failure_reason"),
        ended_at=case((bindparam("ends", type_=_D.attempts.type) == 1, func.now()), else_=null()),
    )
    .add_cte(_ATTEMPT.cte("kept"))
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
    """One event for one endpoint; `sealed_body` is delivered instead of the event's own body.

    `message_id` is what `webhook-id` is made from, None for the delivery's own id.
    `order_key`: with what it keeps its order, empty where it keeps none by key.
    """

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
    message_id: UUID | None = None
    order_key: str = ""


@dataclass(frozen=True, slots=True)
class Taken:
    """What of a delivery is to be sent, and where.

    The `event` is None where it has gone, and where the delivery has a `sealed_body` of its own.
    """

    id: UUID
    of_event: UUID
    event_type: str
    attempts: int
    ended_at: datetime | None
    data_key_id: UUID | None
    sealed_body: bytes | None = field(repr=False)
    message_id: UUID | None
    event: Kept | None
    way: WayOut


Wanted = tuple[UUID, UUID]
"""The id of a delivery, and its endpoint's."""


def adding(new: NewDelivery) -> Bound:
    """What makes a delivery; its work goes with it."""
    words = {name: getattr(new, name) for name in _NEW if name != "state"}
    return Bound(ADD, {**words, "state": "queued"})


def tried(tenant_id: UUID, delivery_id: UUID, attempt: Attempt, state: str) -> Bound:
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
    return Bound(TRIED, {**row, "new_state": state, "ends": int(state in ENDED)})


def sending(tenant_id: UUID, delivery_id: UUID) -> Bound:
    """What says that a try is under way."""
    return Bound(SENDING, {"the_tenant_id": tenant_id, "the_id": delivery_id})


def ending(tenant_id: UUID, delivery_id: UUID, state: str, reason: str) -> Bound:
    """What ends a delivery without another try; without a `reason` that of the last try stands."""
    place = {"the_tenant_id": tenant_id, "the_id": delivery_id}
    return Bound(END, {**place, "new_state": state, "reason": reason})


def taking(tenant_id: UUID, wanted: Sequence[Wanted]) -> list[Bound]:
    """Reads deliveries of a tenant with the ways to their endpoints; `taken` takes the answers."""
    ways = [going_out(tenant_id, endpoint_id) for endpoint_id in _endpoints(wanted)]
    ids = sorted({delivery_id for delivery_id, _ in wanted})
    # What is read of the tenant is the same for all.
    return [
        Bound(TAKE, {"tenant_id": tenant_id, "ids": ids}),
        ways[0][0],
        *(of_endpoint for _, of_endpoint in ways),
    ]


def taken(wanted: Sequence[Wanted], answers: Sequence[list[Any]]) -> list[Taken | None]:
    """What was read, in the order it was wanted; None where there is no such delivery."""
    rows, tenant, *objects = answers
    found = {row.id: row for row in rows}
    ways = {
        endpoint_id: way_out([tenant, of_endpoint])
        for endpoint_id, of_endpoint in zip(_endpoints(wanted), objects, strict=True)
    }
    return [
        _taken(found[delivery_id], ways[endpoint_id]) if delivery_id in found else None
        for delivery_id, endpoint_id in wanted
    ]


def _endpoints(wanted: Sequence[Wanted]) -> list[UUID]:
    return sorted({endpoint_id for _, endpoint_id in wanted})


def _taken(row: Any, way: WayOut) -> Taken:
    event = {name: getattr(row, f"event_{name}") for name in _KEPT}
    return Taken(
        **{name: getattr(row, name) for name in (*_TAKEN, "of_event")},
        event=Kept(**event) if event["id"] is not None else None,
        way=way,
    )
