"""Kept answers to requests."""

from sqlalchemy import bindparam, delete, func, insert, select, text

from services.chassis.database import Statement
from services.registry import tables as t

_A = t.request_answers.c
_DAY_AGO = func.now() - text("interval '24 hours'")

FIND = Statement(
    select(_A.request_hash, _A.answer).where(
        _A.tenant_id == bindparam("tenant_id"),
        _A.principal_id == bindparam("principal_id"),
        _A.method == bindparam("method"),
        _A.request_id == bindparam("request_id"),
        _A.created_at > _DAY_AGO,
    )
)
KEEP = Statement(
    insert(t.request_answers).values(
        {c.name: bindparam(c.name, type_=c.type) for c in _A if c.name != "created_at"}
    )
)
FORGET = Statement(
    delete(t.request_answers).where(
        _A.tenant_id == bindparam("tenant_id"), _A.created_at <= _DAY_AGO
    )
)
