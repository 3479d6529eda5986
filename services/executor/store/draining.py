"""What the executor has of tenants that are being deleted: how they stand, and what goes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import Double, Uuid, bindparam, cast, delete, func, select, update

from services.chassis.database import Database, Statement, Transaction
from services.chassis.purge import TenantRows
from services.executor.tables import AUDIT_OUTBOX, METADATA, TENANTS, WORK

# Tables are told in the order in which one refers to another; the tenants themselves go last.
ROWS: Final = TenantRows(
    [
        table
        for table in reversed(METADATA.tables.values())
        if "tenant_id" in table.c and table is not TENANTS
    ]
)

_MINE = TENANTS.c.tenant_id == bindparam("the_tenant_id", type_=Uuid)
_AGE = func.extract("epoch", func.now() - TENANTS.c.draining_since)

FIND = Statement(
    select(TENANTS.c.tenant_id, cast(_AGE, Double).label("age_s")).where(
        TENANTS.c.draining_since.is_not(None)
    )
)
RUNNING = Statement(
    select(WORK.c.target_id).where(
        WORK.c.tenant_id == bindparam("tenant_id"),
        WORK.c.claim_id.is_not(None),
        WORK.c.lease_until > func.now(),
    )
)
UNTOLD = Statement(
    select(func.count().label("count")).where(AUDIT_OUTBOX.c.tenant_id == bindparam("tenant_id"))
)
PURGED = Statement(select(TENANTS.c.purged_rows).where(_MINE))
COUNT = Statement(
    update(TENANTS)
    .where(_MINE)
    .values(purged_rows=bindparam("rows", type_=TENANTS.c.purged_rows.type))
)
FORGET = Statement(delete(TENANTS).where(_MINE))


@dataclass(frozen=True, slots=True)
class Leaving:
    """A tenant that is being deleted, and for how long it has been, by the database's clock."""

    tenant_id: UUID
    age_s: float


async def leaving(database: Database) -> list[Leaving]:
    """Every tenant that is being deleted."""
    async with database.system() as tx:
        return [Leaving(*row) for row in await tx.all(FIND)]


async def running(database: Database, tenant_id: UUID) -> list[UUID]:
    """The targets of the work that somebody has claimed and may be doing."""
    rows = await database.read(tenant_id, RUNNING, tenant_id=tenant_id)
    return [row.target_id for row in rows]


async def untold(database: Database, tenant_id: UUID) -> int:
    """How much of what was done here the registry's audit log does not have yet."""
    rows = await database.read(tenant_id, UNTOLD, tenant_id=tenant_id)
    return int(rows[0].count)


async def purged(tx: Transaction, tenant_id: UUID) -> dict[str, int] | None:
    """How many rows of a tenant are deleted by now, by table; None: so is the tenant."""
    row = await tx.one(PURGED, the_tenant_id=tenant_id)
    return None if row is None else dict(row.purged_rows)


async def count(tx: Transaction, tenant_id: UUID, rows: Mapping[str, int]) -> None:
    """Keep how many rows are deleted by now."""
    await tx.run(COUNT, the_tenant_id=tenant_id, rows=dict(rows))


async def forget(tx: Transaction, tenant_id: UUID) -> None:
    """Delete the tenant itself."""
    await tx.run(FORGET, the_tenant_id=tenant_id)
