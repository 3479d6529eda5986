"""How the runs of a connector went, counted from its newest executions."""

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Double, Integer, Uuid, bindparam, case, extract, func, select

from services.chassis.database import Bound, Database, Statement
from services.executor.store.executions import COLUMNS, MINE, Execution
from services.executor.tables import EXECUTIONS

MOST: Final = 10_000
"""Executions that are looked at, the newest first: some 10 ms."""
STATES: Final = ("pending", "running", "success", "failed", "timeout", "cancelled")

_OF_CONNECTOR = (MINE, EXECUTIONS.c.connector == bindparam("connector"))
_NEWEST_FIRST = EXECUTIONS.c.id.desc()

LAST = Statement(select(*COLUMNS).where(*_OF_CONNECTOR).order_by(_NEWEST_FIRST).limit(1))


def _counts() -> Statement:
    """Counts by state, and how long half and 95 of 100 of those took that ended by themselves."""
    run = (
        select(EXECUTIONS.c.state, EXECUTIONS.c.started_at, EXECUTIONS.c.ended_at)
        .where(*_OF_CONNECTOR, EXECUTIONS.c.id >= bindparam("since", type_=Uuid))
        .order_by(_NEWEST_FIRST)
        .limit(bindparam("most", type_=Integer))
        .subquery("run")
    )
    by_itself = run.c.state != "cancelled"
    took_s = case((by_itself, extract("epoch", run.c.ended_at - run.c.started_at).cast(Double)))
    return Statement(
        select(
            *(func.count().filter(run.c.state == state).label(state) for state in STATES),
            *(
                func.percentile_cont(share).within_group(took_s).label(name)
                for name, share in (("median_s", 0.5), ("p95_s", 0.95))
            ),
        ).select_from(run)
    )


COUNTS = _counts()


@dataclass(frozen=True, slots=True)
class Counts:
    """Runs by state, and their durations in seconds; None where none ended by itself."""

    states: dict[str, int]
    median_s: float | None
    p95_s: float | None


async def read(
    database: Database, tenant_id: UUID, connector: str, since: list[UUID]
) -> tuple[Execution | None, list[Counts]]:
    """A connector's newest execution, and the counts of those from each of `since` on."""
    key = {"tenant_id": tenant_id, "connector": connector}
    counting = [Bound(COUNTS, {**key, "since": each, "most": MOST}) for each in since]
    last, *counts = await database.read_all(tenant_id, [Bound(LAST, key), *counting])
    return Execution(*last[0]) if last else None, [_counted(rows[0]) for rows in counts]


def _counted(row: Any) -> Counts:
    return Counts({name: getattr(row, name) for name in STATES}, row.median_s, row.p95_s)
