"""What was done here and is not in the registry's audit log yet."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ARRAY, Select, Table, Uuid, bindparam, delete, func, insert, not_, select
from sqlalchemy.dialects.postgresql import JSONB

from services.chassis.database import Bound, Database, Statement
from services.executor.tables import AUDIT_OUTBOX, PLATFORM_AUDIT_OUTBOX

_ID = bindparam("id", type_=Uuid)
_EVENT = bindparam("event", type_=JSONB)
_IDS = bindparam("ids", type_=ARRAY(Uuid))

ADD: Final = Statement(
    insert(AUDIT_OUTBOX).values(tenant_id=bindparam("tenant_id", type_=Uuid), id=_ID, event=_EVENT)
)
ADD_PLATFORM: Final = Statement(insert(PLATFORM_AUDIT_OUTBOX).values(id=_ID, event=_EVENT))


def _tenants() -> Statement:
    """Each tenant of which something waits, found by as many steps in the index."""
    waiting = AUDIT_OUTBOX.c.tenant_id
    first = select(waiting).order_by(waiting).limit(1)
    found = select(first.scalar_subquery().label("tenant_id")).cte("found", recursive=True)
    after = first.where(waiting > found.c.tenant_id).scalar_subquery()
    found = found.union_all(select(after).where(found.c.tenant_id.is_not(None)))
    return Statement(select(found.c.tenant_id).where(found.c.tenant_id.is_not(None)))


def _oldest(table: Table) -> Select[Any]:
    return (
        select(table.c.id, table.c.event)
        .where(not_(table.c.id == func.any(_IDS)))
        .order_by(table.c.id)
        .limit(bindparam("size"))
    )


TENANTS: Final = _tenants()
OLDEST: Final = Statement(
    _oldest(AUDIT_OUTBOX).where(AUDIT_OUTBOX.c.tenant_id == bindparam("tenant_id", type_=Uuid))
)
OLDEST_OF_PLATFORM: Final = Statement(_oldest(PLATFORM_AUDIT_OUTBOX))
TAKE: Final = Statement(
    delete(AUDIT_OUTBOX).where(
        AUDIT_OUTBOX.c.tenant_id == bindparam("tenant_id", type_=Uuid),
        AUDIT_OUTBOX.c.id == func.any(_IDS),
    )
)
TAKE_OF_PLATFORM: Final = Statement(
    delete(PLATFORM_AUDIT_OUTBOX).where(PLATFORM_AUDIT_OUTBOX.c.id == func.any(_IDS))
)


@dataclass(frozen=True, slots=True)
class Told:
    """One event that waits; of a tenant, or of the platform."""

    tenant_id: UUID | None
    event_id: UUID
    event: dict[str, Any]


def adding(one: Told) -> Bound:
    """What writes an event down, in the transaction of what it tells."""
    row = {"id": one.event_id, "event": one.event}
    if one.tenant_id is None:
        return Bound(ADD_PLATFORM, row)
    return Bound(ADD, {**row, "tenant_id": one.tenant_id})


async def tenants(database: Database) -> list[UUID]:
    """The tenants of which something waits."""
    async with database.system() as tx:
        return [row.tenant_id for row in await tx.all(TENANTS)]


async def oldest(
    database: Database, tenant_id: UUID | None, size: int, but: Collection[UUID]
) -> list[Told]:
    """The oldest that wait, of a tenant or of the platform, `but` some."""
    asked = {"size": size, "ids": list(but)}
    async with database.system() as tx:
        if tenant_id is None:
            rows = await tx.all(OLDEST_OF_PLATFORM, **asked)
        else:
            rows = await tx.all(OLDEST, tenant_id=tenant_id, **asked)
    return [Told(tenant_id, row.id, row.event) for row in rows]


async def forget(database: Database, tenant_id: UUID | None, ids: Sequence[UUID]) -> None:
    """Let go of what the registry has."""
    async with database.system() as tx:
        if tenant_id is None:
            await tx.run(TAKE_OF_PLATFORM, ids=list(ids))
        else:
            await tx.run(TAKE, tenant_id=tenant_id, ids=list(ids))
