"""What was done here and is not in the registry's audit log yet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ARRAY, Uuid, bindparam, delete, func, insert, null, select
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
OLDEST: Final = Statement(select(AUDIT_OUTBOX).order_by(AUDIT_OUTBOX.c.id).limit(bindparam("size")))
OLDEST_OF_PLATFORM: Final = Statement(
    select(null().label("tenant_id"), PLATFORM_AUDIT_OUTBOX)
    .order_by(PLATFORM_AUDIT_OUTBOX.c.id)
    .limit(bindparam("size"))
)
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


async def oldest(database: Database, size: int) -> list[Told]:
    """The oldest that wait, of all tenants and of the platform, so many of each."""
    asked = {"size": size}
    async with database.system() as tx:
        found = await tx.pipeline([Bound(OLDEST, asked), Bound(OLDEST_OF_PLATFORM, asked)])
    return [Told(row.tenant_id, row.id, row.event) for rows in found for row in rows]


async def forget(database: Database, tenant_id: UUID | None, ids: Sequence[UUID]) -> None:
    """Let go of what the registry has."""
    async with database.system() as tx:
        if tenant_id is None:
            await tx.run(TAKE_OF_PLATFORM, ids=list(ids))
        else:
            await tx.run(TAKE, tenant_id=tenant_id, ids=list(ids))
