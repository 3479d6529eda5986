"""When connectors run and streams are transferred by themselves: written with the projection, moved
on by the scheduler.

A schedule has its owner's id. `moment` is the time it recurs at, `next_at` that time with its
jitter, which is when it is due.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    DateTime,
    Integer,
    Uuid,
    all_,
    any_,
    bindparam,
    delete,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from services.chassis.database import Bound, Database, Statement, Transaction
from services.executor.store.projected import OWNERS, ProjectedObject
from services.executor.tables import PROJECTED_OBJECTS as OBJECTS
from services.executor.tables import SCHEDULES, TENANTS

BATCH: Final = 100
"""Schedules of one tenant that share a transaction."""
TENANTS_A_LOOK: Final = 500


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule as it is kept; `recurrence` has the contract's fields."""

    schedule_id: UUID
    recurrence: dict[str, Any]
    moment: datetime
    next_at: datetime


@dataclass(frozen=True, slots=True)
class Due:
    """Due schedules of one tenant, locked, and the owners of those that still have one."""

    enabled: bool
    schedules: tuple[Schedule, ...]
    owners: dict[UUID, ProjectedObject]


_NOW = bindparam("now", type_=DateTime(timezone=True))
_IDS = bindparam("ids", type_=ARRAY(Uuid))
_MINE = SCHEDULES.c.tenant_id == bindparam("tenant_id", type_=Uuid)
_COLUMNS = [SCHEDULES.c[name] for name in Schedule.__slots__]
_SOONEST = func.min(SCHEDULES.c.next_at)

DUE_TENANTS = Statement(
    select(SCHEDULES.c.tenant_id)
    .where(SCHEDULES.c.next_at <= _NOW)
    .group_by(SCHEDULES.c.tenant_id)
    .order_by(_SOONEST)
    .limit(TENANTS_A_LOOK)
)
NEXT = Statement(select(_SOONEST.label("next_at")).where(SCHEDULES.c.next_at > _NOW))
LOCK_DUE = Statement(
    select(*_COLUMNS)
    .where(_MINE, SCHEDULES.c.next_at <= _NOW)
    .order_by(SCHEDULES.c.next_at)
    .limit(bindparam("most", type_=Integer))
    # Another leader, for a moment, takes the others.
    .with_for_update(skip_locked=True)
)
ENABLED = Statement(
    select(TENANTS.c.enabled).where(TENANTS.c.tenant_id == bindparam("tenant_id", type_=Uuid))
)
OWNERS_OF = Statement(
    select(OBJECTS.c.kind, OBJECTS.c.object_id, OBJECTS.c.name, OBJECTS.c.version, OBJECTS.c.spec)
    .where(
        OBJECTS.c.tenant_id == bindparam("tenant_id", type_=Uuid),
        or_(*(OBJECTS.c.kind == kind for kind in sorted(OWNERS))),
        OBJECTS.c.object_id == any_(_IDS),
    )
    .order_by(OBJECTS.c.object_id)
)
MOVE = Statement(
    update(SCHEDULES)
    .where(_MINE, SCHEDULES.c.schedule_id == bindparam("schedule_id", type_=Uuid))
    .values(
        moment=bindparam("to_moment", type_=SCHEDULES.c.moment.type),
        next_at=bindparam("to_next_at", type_=SCHEDULES.c.next_at.type),
    )
)
FORGET = Statement(delete(SCHEDULES).where(_MINE, SCHEDULES.c.schedule_id == any_(_IDS)))
FORGET_OTHERS = Statement(delete(SCHEDULES).where(_MINE, SCHEDULES.c.schedule_id != all_(_IDS)))


def _upsert() -> Statement:
    new = insert(SCHEDULES).values({c.name: bindparam(c.name, type_=c.type) for c in SCHEDULES.c})
    changing = ("recurrence", "moment", "next_at")
    return Statement(
        new.on_conflict_do_update(
            index_elements=[SCHEDULES.c.tenant_id, SCHEDULES.c.schedule_id],
            set_={name: new.excluded[name] for name in changing},
            # One that recurs as before keeps its beat.
            where=SCHEDULES.c.recurrence != new.excluded.recurrence,
        )
    )


UPSERT = _upsert()


async def due_tenants(database: Database, now: datetime) -> tuple[list[UUID], datetime | None]:
    """The tenants with something due, the longest first, and when the next schedule is due."""
    async with database.system() as tx:
        due, soonest = await tx.conclude(
            [Bound(DUE_TENANTS, {"now": now}), Bound(NEXT, {"now": now})]
        )
    return [row.tenant_id for row in due], soonest[0].next_at


async def lock_due(tx: Transaction, tenant_id: UUID, now: datetime) -> Due:
    """Lock a batch of a tenant's due schedules that nobody else has, the longest due first."""
    rows = await tx.all(LOCK_DUE, tenant_id=tenant_id, now=now, most=BATCH)
    schedules = tuple(Schedule(*row) for row in rows)
    ids = [each.schedule_id for each in schedules]
    tenants, found = await tx.pipeline(
        [
            Bound(ENABLED, {"tenant_id": tenant_id}),
            Bound(OWNERS_OF, {"tenant_id": tenant_id, "ids": ids}),
        ]
    )
    owners = {row.object_id: ProjectedObject(*row) for row in found}
    return Due(bool(tenants) and tenants[0].enabled, schedules, owners)


async def move(
    tx: Transaction, tenant_id: UUID, moved: Sequence[Schedule], gone: Sequence[UUID]
) -> None:
    """Say when schedules are due next; what is `gone` is due no more."""
    moves = [
        Bound(
            MOVE,
            {
                "tenant_id": tenant_id,
                "schedule_id": each.schedule_id,
                "to_moment": each.moment,
                "to_next_at": each.next_at,
            },
        )
        for each in moved
    ]
    await tx.pipeline([*moves, Bound(FORGET, {"tenant_id": tenant_id, "ids": list(gone)})])


async def replace(tx: Transaction, tenant_id: UUID, schedules: Sequence[Schedule]) -> None:
    """Make a tenant's schedules these and no others; one that recurs as before stays as it is."""
    kept = [each.schedule_id for each in schedules]
    upserts = [
        Bound(
            UPSERT,
            {
                "tenant_id": tenant_id,
                "schedule_id": each.schedule_id,
                "recurrence": each.recurrence,
                "moment": each.moment,
                "next_at": each.next_at,
            },
        )
        for each in schedules
    ]
    await tx.pipeline([Bound(FORGET_OTHERS, {"tenant_id": tenant_id, "ids": kept}), *upserts])
