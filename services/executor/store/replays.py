"""Replays: how far each has come, so that whoever is cut short can go on with it."""

from dataclasses import dataclass, fields
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    LargeBinary,
    Uuid,
    and_,
    any_,
    bindparam,
    func,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import distinct_on, insert

from services.chassis.database import Database, Statement, Transaction
from services.executor.tables import DELIVERIES, REPLAYS, TENANT_LANES, TENANTS


@dataclass(frozen=True, slots=True)
class Progress:
    """After which event a replay goes on, with which it ends, and what it has begun by now."""

    after_id: UUID
    until_id: UUID
    events: int = 0
    deliveries: int = 0
    executions: int = 0
    unreadable: int = 0
    sync_runs: int = 0


COUNTS: Final = ("events", "deliveries", "executions", "unreadable", "sync_runs")
_R = REPLAYS.c
_THE = and_(
    _R.tenant_id == bindparam("the_tenant_id", type_=Uuid),
    _R.replay_id == bindparam("the_id", type_=Uuid),
)
# A tenant that is on its way out begins nothing, whoever saw it enabled before.
_ENABLED = and_(TENANTS.c.tenant_id == bindparam("the_tenant_id", type_=Uuid), TENANTS.c.enabled)
_GIVEN = {
    "replay_id": bindparam("the_id", type_=Uuid),
    "request_hash": bindparam("request_hash", type_=LargeBinary),
    "after_id": bindparam("after_id", type_=Uuid),
    "until_id": bindparam("until_id", type_=Uuid),
}
BEGIN: Final = Statement(
    insert(REPLAYS)
    .from_select(
        ["tenant_id", *_GIVEN], select(TENANTS.c.tenant_id, *_GIVEN.values()).where(_ENABLED)
    )
    .on_conflict_do_nothing()
)
FIND: Final = Statement(
    select(_R.request_hash, *(_R[each.name] for each in fields(Progress))).where(_THE)
)
ADVANCE: Final = Statement(
    update(REPLAYS)
    .where(
        _THE,
        _R.after_id == bindparam("seen", type_=Uuid),
        select(TENANTS.c.tenant_id).where(_ENABLED).exists(),
    )
    .values(
        after_id=bindparam("to_id", type_=Uuid),
        updated_at=func.now(),
        **{name: bindparam(f"now_{name}", type_=BigInteger) for name in COUNTS},
    )
)
_D = DELIVERIES.c
_ROUTE = (_D.event_id, _D.endpoint_id, _D.subscription)
MESSAGES: Final = Statement(
    select(*_ROUTE, func.coalesce(_D.message_id, _D.id).label("message_id"))
    .ext(distinct_on(*_ROUTE))
    .where(
        _D.tenant_id == bindparam("tenant_id", type_=Uuid),
        _D.event_id == any_(bindparam("event_ids", type_=ARRAY(Uuid))),
    )
    .order_by(*_ROUTE, _D.id)
)

QUOTA: Final = Statement(
    select(TENANT_LANES.c.work_per_hour).where(
        TENANT_LANES.c.tenant_id == bindparam("tenant_id", type_=Uuid)
    )
)

Route = tuple[UUID, UUID, str]
"""By event, endpoint and subscription."""


async def begin(
    database: Database, tenant_id: UUID, replay_id: UUID, request_hash: bytes, start: Progress
) -> tuple[bytes, Progress] | None:
    """Begin a replay, unless it is begun: of which request it is, and how far it has come.

    None: the tenant is not enabled.
    """
    the = {"the_tenant_id": tenant_id, "the_id": replay_id}
    ids = {"after_id": start.after_id, "until_id": start.until_id}
    async with database.tenant(tenant_id) as tx:
        await tx.run(BEGIN, **the, request_hash=request_hash, **ids)
        row: Any = await tx.one(FIND, **the)
    return None if row is None else (bytes(row.request_hash), Progress(*row[1:]))


async def advance(
    tx: Transaction, tenant_id: UUID, replay_id: UUID, seen: Progress, now: Progress
) -> bool:
    """Say how far a replay is; False: somebody else goes on with it, or the tenant is disabled."""
    counts = {f"now_{name}": getattr(now, name) for name in COUNTS}
    moved = {"seen": seen.after_id, "to_id": now.after_id, **counts}
    return await tx.run(ADVANCE, the_tenant_id=tenant_id, the_id=replay_id, **moved) == 1


async def quota(database: Database, tenant_id: UUID) -> int | None:
    """How much work the tenant may begin in an hour; None is without limit."""
    rows = await database.read(tenant_id, QUOTA, tenant_id=tenant_id)
    return rows[0].work_per_hour if rows else None


async def messages(database: Database, tenant_id: UUID, event_ids: list[UUID]) -> dict[Route, UUID]:
    """What the `webhook-id` of the first delivery of each route is made from."""
    rows = await database.read(tenant_id, MESSAGES, tenant_id=tenant_id, event_ids=event_ids)
    return {(row.event_id, row.endpoint_id, row.subscription): row.message_id for row in rows}
