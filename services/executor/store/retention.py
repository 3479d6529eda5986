"""What the executor forgets: whole months of its time tables, and rows that have had their time.

The system login forgets over all tenants; by its policy it sees no row younger than these ages
(`migrations/tenancy.py:FORGOTTEN`).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Column, bindparam, delete, func, select

from services.chassis.database import Database, Statement
from services.chassis.partitions import TimeTables
from services.executor.tables import CONSUMER_GROUPS, EVENT_RECEIPTS, REPLAYS, RUN_REQUESTS

LEADER: Final = "executor.retention"
TIME_TABLES: Final = TimeTables(
    "executor",
    (
        *("events", "executions", "execution_links", "execution_steps"),
        *("deliveries", "delivery_attempts", "sync_runs"),
    ),
)
# Rows of one transaction: milliseconds each.
BATCH: Final = 1000


@dataclass(frozen=True, slots=True)
class Ageing:
    """A table whose rows are forgotten once they are so old by a column."""

    at: Column[Any]
    kept: timedelta

    def cutoff(self) -> Statement:
        """Up to which moment the oldest batch of those before `before` reaches, or null."""
        old = select(self.at).where(self.at < bindparam("before", type_=self.at.type))
        batch = old.order_by(self.at).limit(bindparam("batch")).subquery()
        return Statement(select(func.max(batch.c[self.at.name]).label("cutoff")))

    def forget(self) -> Statement:
        """Deletes all up to a cutoff; a range of the index, however long the backlog is."""
        return Statement(
            delete(self.at.table).where(self.at <= bindparam("cutoff", type_=self.at.type))
        )


FORGETS: Final = {
    ageing.at.table.name: (ageing.kept, ageing.cutoff(), ageing.forget())
    for ageing in (
        Ageing(EVENT_RECEIPTS.c.received_at, timedelta(days=7)),
        Ageing(RUN_REQUESTS.c.created_at, timedelta(hours=24)),
        Ageing(REPLAYS.c.updated_at, timedelta(days=7)),
    )
}
GROUPS: Final = Ageing(CONSUMER_GROUPS.c.used_at, timedelta(days=7))
_UNUSED: Final = (GROUPS.cutoff(), GROUPS.forget())


async def forget(database: Database, now: datetime, *, unused: timedelta) -> dict[str, int]:
    """Forget every row that has had its time at `now`, batch by batch; how many, by table.

    Groups of consumers go once nobody has used them for so long, and for a week at least.
    """
    gone = {
        table: await _forget(database, now - kept, cutoff, statement)
        for table, (kept, cutoff, statement) in FORGETS.items()
    }
    kept = max(unused, GROUPS.kept)
    return {**gone, GROUPS.at.table.name: await _forget(database, now - kept, *_UNUSED)}


async def _forget(
    database: Database, before: datetime, cutoff: Statement, statement: Statement
) -> int:
    gone = 0
    while True:
        async with database.system() as tx:
            reached = (await tx.one(cutoff, before=before, batch=BATCH)).cutoff
            if reached is None:
                return gone
            gone += await tx.run(statement, cutoff=reached)
