"""The statements of the lane doctor: what there is to do, and lanes that nobody would look at.

A lane is stranded whose `next_at` is later than settling it now would say, beyond `grace`
(timedelta); a tenant lane whose `next_at` is later than any of its lanes'.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import (
    Double,
    Integer,
    Interval,
    Uuid,
    and_,
    bindparam,
    extract,
    func,
    select,
    update,
)

from services.chassis.database import Bound, Database, Statement
from services.executor.store.lanes import (
    KEEP_LANES,
    KEEP_TENANT_LANE,
    MINE,
    NEXT,
    NEXT_LANE,
    NOW,
    TENANT_ID,
    THESE_LANES,
    THIS_TENANT,
    WAKE_TENANT_LANE,
)
from services.executor.tables import LANES, TENANT_LANES, WORK

_GRACE = bindparam("grace", type_=Interval)
FIRST: Final = UUID(int=0)

TENANTS_AFTER = Statement(
    select(TENANT_LANES.c.tenant_id)
    .where(TENANT_LANES.c.tenant_id > bindparam("after", type_=Uuid))
    .order_by(TENANT_LANES.c.tenant_id)
    .limit(bindparam("most", type_=Integer))
)

_WAITS = WORK.c.claim_id.is_(None)
_DUE = and_(_WAITS, ~WORK.c.blocked, WORK.c.due_at <= NOW)
_OLDEST = extract("epoch", NOW - func.min(WORK.c.due_at).filter(_DUE)).cast(Double)
COUNT = Statement(
    select(
        WORK.c.kind,
        func.count().filter(_WAITS).label("waiting"),
        func.count().filter(_DUE).label("due"),
        func.count().filter(WORK.c.claim_id.is_not(None)).label("claimed"),
        func.coalesce(_OLDEST, 0.0).label("oldest_s"),
    )
    .where(WORK.c.tenant_id == TENANT_ID)
    .group_by(WORK.c.kind)
)

_STRANDED = and_(LANES.c.next_at > NOW + _GRACE, LANES.c.next_at > NEXT + _GRACE)
STRANDED_LANES = Statement(select(LANES.c.lane_id).where(MINE, _STRANDED))
STRANDED_TENANT = Statement(
    select(TENANT_LANES.c.tenant_id).where(
        THIS_TENANT,
        TENANT_LANES.c.next_at > NOW + _GRACE,
        TENANT_LANES.c.next_at > NEXT_LANE + _GRACE,
    )
)
MEND_LANES = Statement(
    update(LANES).where(THESE_LANES, _STRANDED).values(next_at=NEXT).returning(LANES.c.lane_id)
)


@dataclass(frozen=True, slots=True)
class Load:
    """The work of one kind: what waits, due or not; what is due; what is claimed; seconds."""

    kind: str
    waiting: int
    due: int
    claimed: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class Examined:
    """One tenant: its work by kind, the lanes that seem stranded, and whether its own does."""

    loads: tuple[Load, ...]
    lane_ids: tuple[UUID, ...]
    tenant: bool


async def tenants_after(database: Database, after: UUID, most: int) -> list[UUID]:
    """Tenants that have lanes, in the order of their ids."""
    async with database.system() as tx:
        rows = await tx.conclude([Bound(TENANTS_AFTER, {"after": after, "most": most})])
    return [row.tenant_id for row in rows[0]]


async def examine(
    database: Database, tenant_ids: Sequence[UUID], grace: timedelta
) -> dict[UUID, Examined]:
    """Look at many tenants in one round trip, at each inside it."""
    asked = {
        tenant_id: [
            Bound(COUNT, {"tenant_id": tenant_id}),
            Bound(STRANDED_LANES, {"tenant_id": tenant_id, "grace": grace}),
            Bound(STRANDED_TENANT, {"tenant_id": tenant_id, "grace": grace}),
        ]
        for tenant_id in tenant_ids
    }
    async with database.across(durable=False) as tx:
        found = await tx.each(asked, last=True)
    return {
        tenant_id: Examined(
            tuple(Load(*row) for row in loads), tuple(row.lane_id for row in lanes), bool(tenant)
        )
        for tenant_id, (loads, lanes, tenant) in found.items()
    }


async def mend(
    database: Database, tenant_id: UUID, lane_ids: Sequence[UUID], grace: timedelta
) -> tuple[list[UUID], bool]:
    """Pull what is still stranded; the lanes, and whether the tenant's own was.

    As whoever makes work due: the locks first, then new statements that lower.
    """
    lanes = {"tenant_id": tenant_id, "lane_ids": sorted(lane_ids)}
    async with database.tenant(tenant_id) as tx:
        *_, stranded, mended, _ = await tx.conclude(
            [
                Bound(KEEP_TENANT_LANE, {"tenant_id": tenant_id}),
                Bound(KEEP_LANES, lanes),
                Bound(STRANDED_TENANT, {"tenant_id": tenant_id, "grace": grace}),
                Bound(MEND_LANES, {**lanes, "grace": grace}),
                Bound(WAKE_TENANT_LANE, {"tenant_id": tenant_id}),
            ]
        )
    return [row.lane_id for row in mended], bool(stranded)
