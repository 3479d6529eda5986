"""What the registry forgets: whole months of logs and usage, answers after a day, old flows."""

from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Column, DateTime, Table, bindparam, delete, func, select

from services.chassis.database import Database, Statement
from services.chassis.partitions import TimeTables
from services.registry import tables as t

LEADER: Final = "registry.retention"
TIME_TABLES: Final = TimeTables(
    "registry", ("api_key_usage", "audit_events", "platform_audit_events")
)
ANSWERS_KEPT: Final = timedelta(hours=24)
# Rows of one transaction: milliseconds each.
BATCH: Final = 1000


def _statements(table: Table) -> tuple[Statement, Statement]:
    """Up to which moment the oldest batch reaches; and what deletes all up to there."""
    at: Column[datetime] = table.c.created_at
    moment = DateTime(timezone=True)
    batch = (
        select(at)
        .where(at < bindparam("before", type_=moment))
        .order_by(at)
        .limit(bindparam("batch"))
        .subquery()
    )
    cutoff = select(func.max(batch.c.created_at).label("cutoff"))
    return Statement(cutoff), Statement(
        delete(table).where(at <= bindparam("cutoff", type_=moment))
    )


FORGETS: Final = {
    table.name: _statements(table) for table in (t.request_answers, t.platform_answers)
}

# Of these the system login sees only what may go. Source: migrations/tenancy.py:FORGOTTEN.
HAVE_HAD_THEIR_TIME: Final = {
    table.name: Statement(delete(table))
    for table in (t.credential_uses, t.oauth_flows, t.connect_links)
}


async def forget(database: Database, now: datetime) -> dict[str, int]:
    """Forget every answer that has had its day, old use and old flows; how many, by table."""
    gone = {
        name: await _forget(database, now - ANSWERS_KEPT, *statements)
        for name, statements in FORGETS.items()
    }
    async with database.system() as transaction:
        for table, statement in HAVE_HAD_THEIR_TIME.items():
            gone[table] = await transaction.run(statement)
    return gone


async def _forget(
    database: Database, before: datetime, cutoff: Statement, statement: Statement
) -> int:
    gone = 0
    while True:
        async with database.system() as transaction:
            reached = (await transaction.one(cutoff, before=before, batch=BATCH)).cutoff
            if reached is None:
                return gone
            gone += await transaction.run(statement, cutoff=reached)
