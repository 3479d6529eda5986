"""Events in the order in which they came to be seen, below the oldest open transaction.

A position is (xid, id): the transaction that kept the event, and the event. Ids alone would lose
what commits late. What was kept before there were positions has the xid 0, and comes first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    Text,
    Uuid,
    bindparam,
    cast,
    func,
    literal_column,
    select,
    tuple_,
)

from services.chassis.database import Bound, Database, Statement, Xid8
from services.executor.store.event_pages import Noted
from services.executor.store.events import Kept, kept
from services.executor.tables import EVENTS

PAGE: Final = 100
LARGEST: Final = 4 * 2**20
"""Bytes of the bodies of a page; one event alone may have more."""


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Where to go on: after this event of this transaction."""

    xid: int
    event_id: UUID


OLDEST: Final = Position(0, UUID(int=0))


@dataclass(frozen=True, slots=True)
class Found:
    """An event, what is kept of what it says, and its position."""

    noted: Noted
    kept: Kept
    position: Position


_E = EVENTS.c
_MINE = _E.tenant_id == bindparam("tenant_id", type_=Uuid)
HORIZON_XID: ColumnElement[Any] = literal_column("pg_snapshot_xmin(pg_current_snapshot())", Xid8())
"""The oldest open transaction: what is below it is seen whole."""
_SEEN = _E.xid < HORIZON_XID
_COLUMNS = {each.name: _E[each.name] for each in (*fields(Noted), *fields(Kept))} | {"xid": _E.xid}


def xid_of(name: str) -> ColumnElement[Any]:
    """A parameter that is a transaction id, given as text."""
    return cast(cast(bindparam(name), Text), Xid8())


def _page(where: Sequence[ColumnElement[bool]], *order: str) -> Statement:
    """As many of these events as one may hold in memory, and one at least."""
    some = (
        select(*_COLUMNS.values())
        .where(_MINE, *where)
        .order_by(*(_E[name] for name in order))
        .limit(bindparam("size", type_=Integer))
        .subquery()
    )
    before = func.sum(func.octet_length(some.c.body)).over(
        order_by=[some.c[name] for name in order], rows=(None, -1)
    )
    weighed = select(some, func.coalesce(before, 0).label("before")).subquery()
    whole: Select[Any] = (
        select(*(weighed.c[name] for name in _COLUMNS))
        .where(weighed.c.before < bindparam("largest", type_=BigInteger))
        .order_by(*(weighed.c[name] for name in order))
    )
    return Statement(whole)


AFTER: Final = _page(
    [tuple_(_E.xid, _E.id) > tuple_(xid_of("xid"), bindparam("after", type_=Uuid)), _SEEN],
    *("xid", "id"),
)
_BETWEEN = (
    _E.id > bindparam("after", type_=Uuid),
    _E.id <= bindparam("until", type_=Uuid),
)
BETWEEN: Final = _page(_BETWEEN, "id")
BETWEEN_OF: Final = _page([*_BETWEEN, _E.endpoint_id == bindparam("endpoint_id", type_=Uuid)], "id")
HEAD: Final = Statement(
    select(_E.xid, _E.id).where(_MINE, _SEEN).order_by(_E.xid.desc(), _E.id.desc()).limit(1)
)
HORIZON: Final = Statement(select(HORIZON_XID.label("xid")))
# A dump that is loaded elsewhere begins to count anew: what was told before means nothing there.
INCARNATION: Final = Statement(
    select(literal_column("system_identifier").label("id")).select_from(
        func.pg_control_system().alias("control")
    )
)


async def incarnation(database: Database, tenant_id: UUID) -> int:
    """Which server's transactions the positions count."""
    return int((await database.read(tenant_id, INCARNATION))[0].id)


async def after(database: Database, tenant_id: UUID, position: Position) -> list[Found]:
    """The next events after a position, in their order."""
    where = {"xid": str(position.xid), "after": position.event_id, **_limits()}
    return [
        _found(row) for row in await database.read(tenant_id, AFTER, tenant_id=tenant_id, **where)
    ]


async def between(
    database: Database, tenant_id: UUID, ids: tuple[UUID, UUID], endpoint_id: UUID | None
) -> list[Found]:
    """The next events after one id up to another, of one endpoint where it is said."""
    where = {"tenant_id": tenant_id, "after": ids[0], "until": ids[1], **_limits()}
    if endpoint_id is None:
        rows = await database.read(tenant_id, BETWEEN, **where)
    else:
        rows = await database.read(tenant_id, BETWEEN_OF, endpoint_id=endpoint_id, **where)
    return [_found(row) for row in rows]


async def newest(database: Database, tenant_id: UUID) -> Position:
    """Where to begin for what comes from now on; what is under way now is told as well."""
    (row,) = await database.read(tenant_id, HORIZON)
    return Position(int(row.xid), UUID(int=0))


async def heads(database: Database, tenant_ids: Sequence[UUID]) -> dict[UUID, Position]:
    """The last event of each tenant, where it has any, in one round trip."""
    work = {each: [Bound(HEAD, {"tenant_id": each})] for each in tenant_ids}
    async with database.across(durable=False) as tx:
        answers = await tx.each(work, last=True)
    return {
        tenant_id: Position(int(rows[0].xid), rows[0].id)
        for tenant_id, (rows,) in answers.items()
        if rows
    }


def emptied(kept: Kept) -> Kept:
    """What is left of what an event says where it does not open."""
    return Kept(kept.tenant_id, kept.id, {}, b"")


def _limits() -> dict[str, int]:
    return {"size": PAGE, "largest": LARGEST}


def _found(row: Any) -> Found:
    noted = Noted(**{each.name: getattr(row, each.name) for each in fields(Noted)})
    return Found(noted, kept(row), Position(int(row.xid), row.id))
