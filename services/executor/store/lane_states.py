"""How lanes stand, read for operators; and the switches of providers.

What waits is counted as far as `MOST_COUNTED`: a backlog must not make looking at it slow.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Integer, String, Uuid, and_, bindparam, case, func, literal_column, select
from sqlalchemy.sql.elements import ColumnElement

from services.chassis.database import Bound, Database, Statement, Transaction
from services.executor.engine.standstill import LaneState
from services.executor.store.lanes import (
    MINE,
    NEVER,
    NOW,
    OF_THE_LANE,
    SWITCH_OFF,
    SWITCH_ON,
    TENANT_ID,
    THIS_LANE,
    WAITING,
)
from services.executor.tables import LANES, PROJECTED_OBJECTS, PROVIDER_SWITCHES, TENANT_LANES, WORK

MOST_COUNTED: Final = 10_000
FIRST: Final = UUID(int=0)

_CLAIMED = WORK.c.claim_id.is_not(None)


@dataclass(frozen=True, slots=True)
class ProviderSwitch:
    """A provider that is switched off for every tenant."""

    provider: str
    reason: str
    switched_off_at: datetime


@dataclass(frozen=True, slots=True)
class ProviderState:
    """How a tenant's lanes of one provider stand; `provider` is empty for those that call none."""

    provider: str
    closed: int
    open: int
    half_open: int
    paused: int
    oldest_age: timedelta | None
    off_reason: str


def _count(where: ColumnElement[bool]) -> Any:
    some: Any = select(literal_column("1")).select_from(WORK).where(where).correlate(LANES)
    some_few = some.limit(MOST_COUNTED).subquery()
    return select(func.count()).select_from(some_few).scalar_subquery()


def _running_of_provider() -> Any:
    other = LANES.alias("other")
    same = and_(other.c.tenant_id == WORK.c.tenant_id, other.c.lane_id == WORK.c.lane_id)
    mine = and_(WORK.c.tenant_id == TENANT_ID, _CLAIMED, other.c.provider == LANES.c.provider)
    found = select(func.count()).select_from(WORK.join(other, same)).where(mine)
    return found.correlate(LANES).scalar_subquery()


def _states() -> Any:
    """Every column of a LaneState, in its order, over a tenant's lanes."""
    of_tenant = and_(WORK.c.tenant_id == TENANT_ID, _CLAIMED)
    cap = TENANT_LANES.c.provider_caps[LANES.c.provider].astext.cast(Integer)
    spent = (LANES.c.burst - 1) / LANES.c.rate_per_s
    columns = {
        "lane_id": LANES.c.lane_id,
        "kind": LANES.c.kind,
        "provider": LANES.c.provider,
        "owner": func.coalesce(PROJECTED_OBJECTS.c.name, ""),
        "owner_state": LANES.c.owner,
        "pause_reason": LANES.c.pause_reason,
        "breaker": LANES.c.breaker,
        "open_until": LANES.c.open_until,
        "probes": LANES.c.breaker_probes,
        "concurrency": LANES.c.concurrency,
        "ordering": LANES.c.ordering,
        "running": _count(and_(OF_THE_LANE, _CLAIMED)),
        "waiting": _count(WAITING),
        "blocked": _count(and_(OF_THE_LANE, WORK.c.claim_id.is_(None), WORK.c.blocked)),
        "due_at": select(func.min(WORK.c.due_at)).where(WAITING).correlate(LANES).scalar_subquery(),
        "next_at": func.nullif(LANES.c.next_at, NEVER),
        "rate_at": LANES.c.rate_at - func.make_interval(0, 0, 0, 0, 0, 0, spent),
        "off_reason": PROVIDER_SWITCHES.c.reason,
        "tenant_paused": TENANT_LANES.c.paused,
        "tenant_running": select(func.count()).where(of_tenant).scalar_subquery(),
        "tenant_most": TENANT_LANES.c.max_running,
        "provider_running": case((cap.is_not(None), _running_of_provider()), else_=0),
        "provider_most": cap,
        "now": NOW,
        "failures": LANES.c.failures,
        "trips": LANES.c.trips,
    }
    owned = and_(
        PROJECTED_OBJECTS.c.tenant_id == LANES.c.tenant_id,
        PROJECTED_OBJECTS.c.object_id == LANES.c.lane_id,
        # Whose action has the lane, and the same id.
        PROJECTED_OBJECTS.c.kind != "Subscription",
    )
    table = (
        LANES.join(TENANT_LANES, TENANT_LANES.c.tenant_id == LANES.c.tenant_id)
        .outerjoin(PROJECTED_OBJECTS, owned)
        .outerjoin(PROVIDER_SWITCHES, PROVIDER_SWITCHES.c.provider == LANES.c.provider)
    )
    shown = [columns[name].label(name) for name in LaneState.__slots__]
    return select(*shown).select_from(table).where(MINE).order_by(LANES.c.lane_id)


_PAGE = (
    _states()
    .where(LANES.c.lane_id > bindparam("after", type_=Uuid))
    .limit(bindparam("most", type_=Integer))
)
PAGE = Statement(_PAGE)
PAGE_OF_KIND = Statement(_PAGE.where(LANES.c.kind == bindparam("kind", type_=String)))
ONE = Statement(_states().where(THIS_LANE))
SWITCHES = Statement(
    select(*(PROVIDER_SWITCHES.c[name] for name in ProviderSwitch.__slots__)).order_by(
        PROVIDER_SWITCHES.c.provider
    )
)


def _by_provider() -> Statement:
    """Every column of a ProviderState, in its order."""
    due = select(func.min(WORK.c.due_at)).where(WAITING).correlate(LANES).scalar_subquery()
    lanes = select(LANES, due.label("due_at")).where(MINE).cte("of_tenant")
    age = NOW - func.min(lanes.c.due_at)
    breakers = (("closed", "CLOSED"), ("open", "OPEN"), ("half_open", "HALF_OPEN"))
    columns = (
        lanes.c.provider,
        *(func.count().filter(lanes.c.breaker == word).label(name) for name, word in breakers),
        func.count().filter(lanes.c.pause_reason != "").label("paused"),
        case((func.min(lanes.c.due_at) <= NOW, age)).label("oldest_age"),
        func.coalesce(func.max(PROVIDER_SWITCHES.c.reason), "").label("off_reason"),
    )
    switched = PROVIDER_SWITCHES.c.provider == lanes.c.provider
    table = lanes.outerjoin(PROVIDER_SWITCHES, switched)
    grouped = select(*columns).select_from(table).group_by(lanes.c.provider)
    return Statement(grouped.order_by(lanes.c.provider))


PROVIDERS = _by_provider()


async def providers(database: Database, tenant_id: UUID) -> list[ProviderState]:
    """A tenant's lanes by provider."""
    rows = await database.read(tenant_id, PROVIDERS, tenant_id=tenant_id)
    return [ProviderState(*row) for row in rows]


async def page(
    database: Database, tenant_id: UUID, kind: str, after: UUID, most: int
) -> list[LaneState]:
    """A tenant's lanes after one, in the order of their ids; of one kind where it is said."""
    where = {"tenant_id": tenant_id, "after": after, "most": most}
    if kind:
        rows = await database.read(tenant_id, PAGE_OF_KIND, kind=kind, **where)
    else:
        rows = await database.read(tenant_id, PAGE, **where)
    return [LaneState(*row) for row in rows]


async def one(tx: Transaction, tenant_id: UUID, lane_id: UUID) -> LaneState | None:
    """A lane, if it is there."""
    row = await tx.one(ONE, tenant_id=tenant_id, lane_id=lane_id)
    return None if row is None else LaneState(*row)


async def switch_off(database: Database, provider: str, reason: str, told: Bound) -> ProviderSwitch:
    """Switch a provider off for every tenant; one that is off stays so, for its first reason.

    `told` is what tells it where it was on.
    """
    async with database.system() as tx:
        if await tx.run(SWITCH_OFF, provider=provider, reason=reason):
            await tx.pipeline([told])
        rows = await tx.all(SWITCHES)
    return next(ProviderSwitch(*row) for row in rows if row.provider == provider)


async def switch_on(database: Database, provider: str, told: Bound) -> None:
    """Switch a provider on; its lanes are looked at again within seconds."""
    async with database.system() as tx:
        if await tx.run(SWITCH_ON, provider=provider):
            await tx.pipeline([told])


async def switches(database: Database) -> list[ProviderSwitch]:
    """The providers that are off."""
    async with database.system() as tx:
        return [ProviderSwitch(*row) for row in await tx.all(SWITCHES)]
