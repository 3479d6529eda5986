"""Kept answers to requests: a tenant's, and the platform's."""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import Table, Text, bindparam, delete, func, insert, select, text

from services.chassis.database import Statement
from services.registry import tables as t

_DAY_AGO = func.now() - text("interval '24 hours'")


@dataclass(frozen=True, slots=True)
class Answers:
    """The statements of one table of answers."""

    find: Statement
    keep: Statement
    forget: Statement


def _answers(table: Table) -> Answers:
    key = [column for column in table.primary_key if column.name != "tenant_id"]
    place = [column for column in table.primary_key if column.name == "tenant_id"]
    names = [c.name for c in table.c if c.name not in {"created_at", "key_usable"}]
    within = [column == bindparam(column.name) for column in place]
    return Answers(
        find=Statement(
            select(table.c.request_hash, table.c.answer, table.c.key_version).where(
                *within,
                *(column == bindparam(column.name) for column in key),
                table.c.created_at > _DAY_AGO,
            )
        ),
        keep=Statement(
            insert(table).values({n: bindparam(n, type_=table.c[n].type) for n in names})
        ),
        forget=Statement(delete(table).where(*within, table.c.created_at <= _DAY_AGO)),
    )


OF_TENANTS: Final = _answers(t.request_answers)
OF_PLATFORM: Final = _answers(t.platform_answers)

WAIT_FOR_TWINS: Final = Statement(
    select(func.pg_advisory_xact_lock(func.hashtextextended(bindparam("words", type_=Text), 0)))
)


def of(tenant_id: UUID | None) -> Answers:
    """Where the answers of a tenant, or (None) of the platform, are."""
    return OF_PLATFORM if tenant_id is None else OF_TENANTS
