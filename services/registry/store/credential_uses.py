"""How credentials were used: counted by the hour, and what it says of how they stand."""

from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    DateTime,
    Interval,
    Uuid,
    and_,
    bindparam,
    case,
    cast,
    func,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.sql.elements import ColumnElement

from services.chassis.database import Statement
from services.registry import tables as t
from services.registry.store.credentials import IS_HEARD_OF, ITS_STATUS, MINE

_C, _S, _U = t.credentials.c, t.credential_status.c, t.credential_uses.c
_NOW = func.clock_timestamp()


def _array(name: str, kind: Any) -> Any:
    return bindparam(name, type_=ARRAY(kind))


def _rows(**columns: Any) -> Any:
    """Arrays as rows."""
    arrays = [_array(name, kind) for name, kind in columns.items()]
    return func.unnest(*arrays).table_valued(*columns, name="item").render_derived()


# Many credentials' uses in one go; those that are gone meanwhile are passed over.
def _count_uses() -> Statement:
    item = _rows(
        ids=Uuid, buckets=DateTime(timezone=True), use_counts=BigInteger, error_counts=BigInteger
    )
    known = select(
        _C.tenant_id,
        item.c.ids,
        item.c.buckets,
        item.c.use_counts,
        item.c.error_counts,
    ).where(MINE, _C.credential_id == item.c.ids)
    adding = upsert(t.credential_uses).from_select(
        ["tenant_id", "credential_id", "bucket_at", "uses", "errors"], known
    )
    return Statement(
        adding.on_conflict_do_update(
            index_elements=["tenant_id", "credential_id", "bucket_at"],
            set_={
                "uses": _U.uses + adding.excluded.uses,
                "errors": _U.errors + adding.excluded.errors,
            },
        )
    )


COUNT_USES: Final = _count_uses()


def _note_use() -> Statement:
    """How they were answered; only a word on the current version says how it stands."""
    moment = DateTime(timezone=True)
    item = _rows(ids=Uuid, seen_versions=BigInteger, used=moment, succeeded=moment, refused=moment)
    current = (
        select(_C.version)
        .where(_C.tenant_id == _S.tenant_id, _C.credential_id == _S.credential_id)
        .scalar_subquery()
    )
    told = and_(IS_HEARD_OF, item.c.seen_versions == current)
    let_in: ColumnElement[bool] = item.c.succeeded > func.coalesce(
        item.c.refused, cast("-infinity", moment)
    )
    return Statement(
        update(t.credential_status)
        .where(
            _S.tenant_id == bindparam("tenant_id", type_=_S.tenant_id.type),
            _S.credential_id == item.c.ids,
        )
        .values(
            used_at=func.greatest(_S.used_at, item.c.used),
            validated_at=func.greatest(_S.validated_at, item.c.succeeded),
            status=case(
                (and_(told, let_in), "valid"),
                (and_(told, item.c.refused.is_not(None)), "invalid"),
                else_=_S.status,
            ),
            reason=case(
                (and_(told, let_in), ""),
                (and_(told, item.c.refused.is_not(None)), "the provider refuses it"),
                else_=_S.reason,
            ),
        )
    )


NOTE_USE: Final = _note_use()
NOTE_RATE_LIMIT: Final = Statement(
    update(t.credential_status)
    .where(*ITS_STATUS)
    .values(rate_limit=bindparam("limits", type_=_S.rate_limit.type))
)


def _windows() -> Statement:
    """Uses of some credentials in the last day and the last 30, and when the oldest leave them."""
    day = _U.bucket_at > _NOW - cast("24 hours", Interval)
    columns: list[Any] = [_U.credential_id]
    for name, inside in (("day", day), ("month", _U.bucket_at.is_not(None))):
        columns += [
            func.coalesce(func.sum(_U.uses).filter(inside), 0).label(f"{name}_uses"),
            func.coalesce(func.sum(_U.errors).filter(inside), 0).label(f"{name}_errors"),
            func.min(_U.bucket_at).filter(inside).label(f"{name}_since"),
        ]
    return Statement(
        select(*columns)
        .where(
            _U.tenant_id == bindparam("tenant_id", type_=_U.tenant_id.type),
            _U.credential_id == func.any(_array("ids", Uuid)),
            _U.bucket_at > _NOW - cast("30 days", Interval),
        )
        .group_by(_U.credential_id)
    )


WINDOWS: Final = _windows()
