"""Deletes all that one tenant has in some tables, a batch a transaction.

A batch finds rows by their place on the disk. The partitions of a table may have a row each at the
same place, so one batch may take a few rows more than it was told: they are the tenant's as well.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Integer, Table, Uuid, bindparam, delete, func, literal_column, select
from sqlalchemy.sql.elements import ColumnElement

from services.chassis.database import Statement, Transaction

BATCH: Final = 1000
"""Rows of one transaction: far below the 5 s that a transaction may last."""


class TenantRows:
    """What a tenant may have in some tables; those that are referred to come last."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables = tuple(table.name for table in tables)
        self._deletes = [(table.name, _deletion(table)) for table in tables]

    async def purge(
        self, transaction: Transaction, tenant_id: UUID, most: int = BATCH
    ) -> Counter[str]:
        """Delete about `most` rows, inside the tenant; how many, by table. Empty: none was left."""
        gone: Counter[str] = Counter()
        for table, statement in self._deletes:
            left = most - gone.total()
            if left <= 0:
                break
            deleted = await transaction.run(statement, tenant_id=tenant_id, most=left)
            if deleted:
                gone[table] = deleted
        return gone


def _deletion(table: Table) -> Statement:
    place: ColumnElement[Any] = literal_column("ctid")
    mine = table.c.tenant_id == bindparam("tenant_id", type_=Uuid)
    batch = select(place).select_from(table).where(mine).limit(bindparam("most", type_=Integer))
    return Statement(
        delete(table).where(mine, place == func.any(func.array(batch.scalar_subquery())))
    )
