"""Usage of API keys by five minutes, and who came to which tenant when."""

from typing import Any

from sqlalchemy import BigInteger, Column, DateTime, Text, bindparam, func, select, true, update
from sqlalchemy import cast as as_type
from sqlalchemy.dialects.postgresql import UUID
from sqlalchemy.dialects.postgresql import insert as upsert

from services.chassis.database import Statement
from services.registry import tables as t

_U, _K, _W, _T, _P = (
    t.api_key_usage.c,
    t.api_keys.c,
    t.tenant_switches.c,
    t.tenants.c,
    t.principals.c,
)
_MOMENT = DateTime(timezone=True)


def _given(column: Column[Any], name: str = "") -> Any:
    """A parameter of a column's type, also where nothing else says which."""
    return as_type(bindparam(name or column.name, type_=column.type), column.type)


def _count() -> Statement:
    row = {
        "id": _given(_U.id, "the_id"),
        "key_id": _K.key_id,
        **{name: _given(_U[name]) for name in ("method", "address", "user_agent")},
        "count": _given(_U["count"]),
        "bucket_at": _given(_U.bucket_at),
    }
    known = select(*row.values()).where(_K.key_id == bindparam("the_key_id", type_=Text))
    new = upsert(t.api_key_usage).from_select(list(row), known)
    return Statement(
        new.on_conflict_do_update(
            index_elements=["id"], set_={"count": _U["count"] + new.excluded["count"]}
        )
    )


COUNT = _count()
USED = Statement(
    update(t.api_keys)
    .where(_K.key_id == bindparam("the_key_id"))
    .values(last_used_at=func.greatest(_K.last_used_at, _given(_K.last_used_at, "used_at")))
)


def _switch() -> Statement:
    """Only where the principal was last in another tenant, or in none yet.

    A tenant on its way out keeps none: its rows may be gone already.
    """
    before = (
        select(_W.tenant_id, _W.switched_at)
        .where(_W.principal_id == bindparam("the_principal_id"))
        .order_by(_W.switched_at.desc())
        .limit(1)
        .subquery()
    )
    known = (
        select(_T.tenant_id, _P.principal_id, _given(_W.switched_at))
        .select_from(t.tenants.join(t.principals, true()).outerjoin(before, true()))
        .where(
            _T.tenant_id == bindparam("the_tenant_id"),
            _T.state == "active",
            _P.principal_id == bindparam("the_principal_id"),
            before.c.tenant_id.is_distinct_from(_T.tenant_id),
            func.coalesce(before.c.switched_at < _given(_W.switched_at), true()),
        )
    )
    new = upsert(t.tenant_switches).from_select(["tenant_id", "principal_id", "switched_at"], known)
    return Statement(
        new.on_conflict_do_update(
            index_elements=["tenant_id", "principal_id"],
            set_={"switched_at": new.excluded.switched_at},
        )
    )


SWITCH = _switch()
SWITCHES = Statement(
    select(_T.slug, _W.switched_at)
    .select_from(t.tenant_switches.join(t.tenants, _T.tenant_id == _W.tenant_id))
    .where(_W.principal_id == bindparam("principal_id"))
)


def _by(column: Column[Any]) -> Statement:
    """Calls of one key by what stands in a column, in each window; at most 400 of them."""
    counts = {
        name: func.coalesce(
            func.sum(_U["count"]).filter(_U.bucket_at > bindparam(name, type_=_MOMENT)), 0
        )
        .cast(BigInteger)
        .label(name)
        for name in ("hour", "day", "week", "month")
    }
    return Statement(
        select(column.label("name"), *counts.values())
        .where(
            _U.key_id == bindparam("key_id"),
            _U.id > bindparam("oldest", type_=UUID(as_uuid=True)),
        )
        .group_by(column)
        .order_by(func.max(_U.bucket_at).desc(), func.sum(_U["count"]).desc())
        .limit(400)
    )


BY_METHOD = _by(_U.method)
BY_ADDRESS = _by(_U.address)
