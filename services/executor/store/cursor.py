"""How far the registry's feed is projected: one row of the deployment."""

from sqlalchemy import bindparam, func, select
from sqlalchemy.dialects.postgresql import insert

from services.chassis.database import Database, Statement
from services.executor.tables import FEED_CURSOR as CURSOR

READ = Statement(select(CURSOR.c.position))
WRITE = Statement(
    insert(CURSOR)
    .values(position=bindparam("position", type_=CURSOR.c.position.type))
    .on_conflict_do_update(
        index_elements=[CURSOR.c.singleton],
        set_={"position": bindparam("position"), "updated_at": func.now()},
    )
)


async def read(database: Database) -> str:
    """The position to go on from; empty before the first."""
    async with database.system() as tx:
        row = await tx.one(READ)
    return "" if row is None else str(row.position)


async def write(database: Database, position: str) -> None:
    """Go on from here after the next start; empty: from the oldest kept."""
    async with database.system() as tx:
        await tx.run(WRITE, position=position)
