"""The audit log: appended to in the transaction of what it tells, read by page."""

from typing import Any

from psycopg.types.json import Jsonb
from sqlalchemy import SmallInteger, Text, bindparam, insert, or_, select
from sqlalchemy.dialects.postgresql import UUID

from services.chassis.database import Statement
from services.registry import tables as t

_A = t.audit_events.c


def as_fields(fields: list[dict[str, Any]]) -> Jsonb:
    """An event's fields as their column takes them."""
    return Jsonb(fields)


APPEND = Statement(
    insert(t.audit_events).values(
        {c.name: bindparam(c.name, type_=c.type) for c in _A if c.name != "created_at"}
    )
)
LIST = Statement(
    select(t.audit_events)
    .where(
        _A.tenant_id == bindparam("tenant_id"),
        _A.id < bindparam("before", type_=UUID(as_uuid=True)),
        or_(bindparam("kind", type_=Text).is_(None), _A.kind == bindparam("kind", type_=Text)),
        or_(
            bindparam("object", type_=Text).is_(None), _A.object == bindparam("object", type_=Text)
        ),
        _A.risk >= bindparam("min_risk", type_=SmallInteger),
    )
    .order_by(_A.id.desc())
    .limit(bindparam("size"))
)
