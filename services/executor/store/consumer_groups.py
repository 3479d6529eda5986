"""Groups of consumers: how far each has acknowledged, and which of its members reads now.

A member reads under a lease by the database's clock; one that lets it lapse keeps its claim until
another takes it. Each reset begins a new generation: what was told in an older one moves nothing.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Integer,
    Interval,
    String,
    Uuid,
    and_,
    bindparam,
    case,
    func,
    literal,
    null,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from services.chassis.database import Bound, Database, Statement
from services.executor.store.positions import HORIZON_XID, Position, xid_of
from services.executor.tables import CONSUMER_GROUPS as GROUPS
from services.executor.tables import TENANTS

LEASE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a group is, and how often it was reset by then; nobody resets a consumer alone."""

    position: Position
    generation: int = 0


_G = GROUPS.c
_THE = and_(
    _G.tenant_id == bindparam("the_tenant_id", type_=Uuid),
    _G.name == bindparam("the_name", type_=String),
)
_CLAIM = bindparam("claim", type_=Uuid)
_LEASE = func.now() + bindparam("lease", type_=Interval)
_POSITION: Final = (_G.xid, _G.event_id)
_REACHED: Final = (*_POSITION, _G.generation)
_TO = {"xid": xid_of("to_xid"), "event_id": bindparam("to_id", type_=Uuid)}
# Only what has been told: nothing is told from the horizon on, before which a new group may begin.
_TOLD = tuple_(*_TO.values()) <= tuple_(HORIZON_XID, literal(UUID(int=0), Uuid))

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
FIND: Final = Statement(select(*_REACHED).where(_THE))
CLAIM: Final = Statement(
    update(GROUPS)
    .where(_THE, or_(_G.claim_id.is_(None), _G.claim_id == _CLAIM, _G.lease_until < func.now()))
    .values(claim_id=_CLAIM, lease_until=_LEASE, used_at=func.now())
    .returning(*_REACHED)
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
    .where(_THE, _TOLD, _G.generation == bindparam("told_in", type_=BigInteger))
    .values(
        **{name: case((_FORWARD, to), else_=_G[name]) for name, to in _TO.items()},
        used_at=func.now(),
        # Whoever acknowledges is at work, however slowly.
        lease_until=case((_G.claim_id.is_not(None), func.greatest(_G.lease_until, _LEASE))),
    )
    .returning(*_REACHED)
)
RESET: Final = Statement(
    update(GROUPS)
    .where(_THE, _TOLD)
    # Who reads now finds the claim gone, and begins anew.
    .values(
        **_TO,
        used_at=func.now(),
        claim_id=null(),
        lease_until=null(),
        generation=_G.generation + 1,
    )
    .returning(*_REACHED)
)


class Group:
    """One group of a tenant."""

    def __init__(self, database: Database, tenant_id: UUID, name: str) -> None:
        self._database = database
        self._tenant_id = tenant_id
        self._the = {"the_tenant_id": tenant_id, "the_name": name}

    async def find(self) -> Reached | None:
        """How far it has acknowledged; None: there is no such group."""
        return _reached(await self._database.read(self._tenant_id, FIND, **self._the))

    async def make(self, start: Position, most: int) -> None:
        """Make it where the tenant is enabled, and has fewer than `most` groups."""
        async with self._database.tenant(self._tenant_id) as tx:
            await tx.run(MAKE, **self._the, **_to(start), most=most)

    async def claim(self, member: UUID) -> Reached | None:
        """Let a member read, from where it answers; None: another one does."""
        async with self._database.tenant(self._tenant_id, durable=False) as tx:
            return _reached(await tx.all(CLAIM, **self._the, claim=member, lease=_LEASED))

    async def keep(self, member: UUID) -> bool:
        """Prolong a member's lease; False: another has read meanwhile, or the group was reset."""
        async with self._database.tenant(self._tenant_id, durable=False) as tx:
            return await tx.run(KEEP, **self._the, claim=member, lease=_LEASED) == 1

    async def release(self, member: UUID) -> None:
        """Let the next member read."""
        async with self._database.tenant(self._tenant_id, durable=False) as tx:
            await tx.run(RELEASE, **self._the, claim=member)

    async def acknowledge(self, told: Reached) -> Reached | None:
        """Move forward; answers where it is then.

        None for what nobody was told, or not in this generation, or where there is no group.
        """
        moved = {**_to(told.position), "told_in": told.generation, "lease": _LEASED}
        async with self._database.tenant(self._tenant_id) as tx:
            return _reached(await tx.all(ACKNOWLEDGE, **self._the, **moved))

    async def reset(self, position: Position, also: Bound) -> Reached | None:
        """Move anywhere, and begin a generation; the same answers.

        `also` goes in the transaction that moves it.
        """
        async with self._database.tenant(self._tenant_id) as tx:
            moved = _reached(await tx.all(RESET, **self._the, **_to(position)))
            if moved is not None:
                await tx.pipeline([also])
            return moved


_LEASED: Final = timedelta(seconds=LEASE_S)


def _to(position: Position) -> dict[str, Any]:
    return {"to_xid": str(position.xid), "to_id": position.event_id}


def _reached(rows: list[Any]) -> Reached | None:
    if not rows:
        return None
    (row,) = rows
    return Reached(Position(int(row.xid), row.event_id), row.generation)
