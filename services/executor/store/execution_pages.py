"""Executions page by page, the newest first."""

from collections.abc import Mapping
from itertools import chain, combinations
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Integer, Uuid, and_, bindparam, select

from services.chassis.database import Database, Statement
from services.executor.store.executions import COLUMNS, MINE, Execution
from services.executor.tables import EXECUTION_LINKS as LINKS
from services.executor.tables import EXECUTIONS

NEWEST: Final = UUID(int=2**128 - 1)
FILTERS: Final = ("connector", "state", "link")


def _list(filters: tuple[str, ...]) -> Statement:
    """A page of the newest before an id, with one condition for each filter that is set."""
    table: Any = EXECUTIONS
    last, conditions = EXECUTIONS.c.id, [MINE]
    conditions += [EXECUTIONS.c[name] == bindparam(name) for name in filters if name != "link"]
    if "link" in filters:
        last = LINKS.c.execution_id
        same = and_(LINKS.c.tenant_id == EXECUTIONS.c.tenant_id, last == EXECUTIONS.c.id)
        table = EXECUTIONS.join(LINKS, same)
        conditions += [
            LINKS.c.tenant_id == bindparam("tenant_id"),
            *(LINKS.c[name] == bindparam(f"link_{name}") for name in ("name", "value")),
        ]
    found = select(*COLUMNS).select_from(table)
    before = found.where(*conditions, last < bindparam("before", type_=Uuid))
    return Statement(before.order_by(last.desc()).limit(bindparam("limit", type_=Integer)))


# A statement for each set of filters: one that says "or none is set" would lose the index.
LISTS: Final = {
    frozenset(filters): _list(filters)
    for filters in chain.from_iterable(combinations(FILTERS, n) for n in range(len(FILTERS) + 1))
}


async def page(
    database: Database,
    tenant_id: UUID,
    filters: Mapping[str, str],
    link: tuple[str, str] | None,
    before: UUID,
    limit: int,
) -> list[Execution]:
    """Executions without steps; `filters` by connector and state, `link` by name and value."""
    linked = {"link_name": link[0], "link_value": link[1]} if link else {}
    statement = LISTS[frozenset([*filters, *(["link"] if link else [])])]
    rows = await database.read(
        tenant_id, statement, tenant_id=tenant_id, before=before, limit=limit, **filters, **linked
    )
    return [Execution(*row) for row in rows]
