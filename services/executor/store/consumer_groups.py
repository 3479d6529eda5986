"""Groups of consumers: how far each has acknowledged, and which of its members reads now.

A member reads under a lease by the database's clock; one that lets it lapse keeps its claim until
another takes it.
"""

from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    Integer,
    Interval,
    String,
    Uuid,
    and_,
    bindparam,
    case,
    func,
    null,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from services.chassis.database import Database, Statement
from services.executor.store.positions import HORIZON_XID, Position, xid_of
from services.executor.tables import CONSUMER_GROUPS as GROUPS
from services.executor.tables import TENANTS

LEASE_S: Final = 30.0

_G = GROUPS.c
_THE = and_(
    _G.tenant_id == bindparam("the_tenant_id", type_=Uuid),
    _G.name == bindparam("the_name", type_=String),
)
_CLAIM = bindparam("claim", type_=Uuid)
_LEASE = func.now() + bindparam("lease", type_=Interval)
_POSITION: Final = (_G.xid, _G.event_id)
_TO = {"xid": xid_of("to_xid"), "event_id": bindparam("to_id", type_=Uuid)}
# Only what has been told: nothing is told from the horizon on, where a new group may begin.
_TOLD = xid_of("to_xid") <= HORIZON_XID

_HOW_MANY = select(func.count()).select_from(GROUPS)
MAKE: Final = Statement(
    insert(GROUPS)
    .from_select(
        ["tenant_id", "name", "xid", "event_id"],
        select(TENANTS.c.tenant_id, bindparam("the_name", type_=String), *_TO.values()).where(
            TENANTS.c.tenant_id == bindparam("the_tenant_id", type_=Uuid),
            TENANTS.c.enabled,
            _HOW_MANY.where(
                _G.tenant_id == bindparam("the_tenant_id", type_=Uuid)
            ).scalar_subquery()
            < bindparam("most", type_=Integer),
        ),
    )
    .on_conflict_do_nothing()
)
FIND: Final = Statement(select(*_POSITION).where(_THE))
CLAIM: Final = Statement(
    update(GROUPS)
    .where(_THE, or_(_G.claim_id.is_(None), _G.claim_id == _CLAIM, _G.lease_until < func.now()))
    .values(claim_id=_CLAIM, lease_until=_LEASE, used_at=func.now())
    .returning(*_POSITION)
)
KEEP: Final = Statement(
    update(GROUPS).where(_THE, _G.claim_id == _CLAIM).values(lease_until=_LEASE, used_at=func.now())
)
RELEASE: Final = Statement(
    update(GROUPS).where(_THE, _G.claim_id == _CLAIM).values(claim_id=null(), lease_until=null())
)
_FORWARD = tuple_(*_POSITION) < tuple_(*_TO.values())
ACKNOWLEDGE: Final = Statement(
    update(GROUPS)
    .where(_THE, _TOLD)
    .values(
        **{name: case((_FORWARD, to), else_=_G[name]) for name, to in _TO.items()},
        used_at=func.now(),
        # Whoever acknowledges is at work, however slowly.
        lease_until=case((_G.claim_id.is_not(None), func.greatest(_G.lease_until, _LEASE))),
    )
    .returning(*_POSITION)
)
RESET: Final = Statement(
    update(GROUPS)
    .where(_THE, _TOLD)
    # Who reads now finds the claim gone, and begins anew.
    .values(**_TO, used_at=func.now(), claim_id=null(), lease_until=null())
    .returning(*_POSITION)
)


class Group:
    """One group of a tenant."""

    def __init__(self, database: Database, tenant_id: UUID, name: str) -> None:
        self._database = database
        self._tenant_id = tenant_id
        self._the = {"the_tenant_id": tenant_id, "the_name": name}

    async def find(self) -> Position | None:
        """How far it has acknowledged; None: there is no such group."""
        return _position(await self._database.read(self._tenant_id, FIND, **self._the))

    async def make(self, start: Position, most: int) -> None:
        """Make it where the tenant is enabled, and has fewer than `most` groups."""
        async with self._database.tenant(self._tenant_id) as tx:
            await tx.run(MAKE, **self._the, **_to(start), most=most)

    async def claim(self, member: UUID) -> Position | None:
        """Let a member read, from where it answers; None: another one does."""
        return await self._changed(CLAIM, claim=member, lease=_LEASED)

    async def keep(self, member: UUID) -> bool:
        """Prolong a member's lease; False: another has read meanwhile, or the group was reset."""
        async with self._database.tenant(self._tenant_id, durable=False) as tx:
            return await tx.run(KEEP, **self._the, claim=member, lease=_LEASED) == 1

    async def release(self, member: UUID) -> None:
        """Let the next member read."""
        async with self._database.tenant(self._tenant_id, durable=False) as tx:
            await tx.run(RELEASE, **self._the, claim=member)

    async def acknowledge(self, position: Position) -> Position | None:
        """Move forward; answers where it is then, or None for what nobody was told or no group."""
        return await self._changed(ACKNOWLEDGE, durable=True, **_to(position), lease=_LEASED)

    async def reset(self, position: Position) -> Position | None:
        """Move anywhere; the same answers."""
        return await self._changed(RESET, durable=True, **_to(position))

    async def _changed(
        self, statement: Statement, *, durable: bool = False, **given: Any
    ) -> Position | None:
        async with self._database.tenant(self._tenant_id, durable=durable) as tx:
            return _position(await tx.all(statement, **self._the, **given))


_LEASED: Final = timedelta(seconds=LEASE_S)


def _to(position: Position) -> dict[str, Any]:
    return {"to_xid": str(position.xid), "to_id": position.event_id}


def _position(rows: list[Any]) -> Position | None:
    return Position(int(rows[0].xid), rows[0].event_id) if rows else None
