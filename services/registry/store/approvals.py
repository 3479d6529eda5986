"""Pending revisions and their approvals."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb
from sqlalchemy import Text, bindparam, func, insert, or_, select, tuple_, update
from sqlalchemy.sql.expression import null

from services.chassis.database import Bound, Statement
from services.registry import tables as t

_P, _A = t.pending_revisions.c, t.pending_approvals.c

_ONE = (
    _P.tenant_id == bindparam("tenant_id"),
    _P.pending_id == bindparam("pending_id", type_=_P.pending_id.type),
)
_OF_APPROVAL = func.jsonb_build_object(
    *("principal", _A.principal_name, "note", _A.note, "create_time", _A.created_at)
)
_APPROVALS = func.array(
    select(_OF_APPROVAL)
    .where(_A.tenant_id == _P.tenant_id, _A.pending_id == _P.pending_id)
    .order_by(_A.created_at, _A.principal_id)
    .scalar_subquery()
).label("approvals")
# Everything but what is sealed.
_SHOWN = [c for c in _P if c.name not in {"data_key_id", "wrapped_key", "sealed"}]

GET = Statement(select(*_SHOWN, _APPROVALS).where(*_ONE))
LIST = Statement(
    select(*_SHOWN, _APPROVALS)
    .where(
        _P.tenant_id == bindparam("tenant_id"),
        _P.pending_id < bindparam("before", type_=_P.pending_id.type),
        or_(bindparam("state", type_=Text).is_(None), _P.state == bindparam("state", type_=Text)),
    )
    .order_by(_P.pending_id.desc())
    .limit(bindparam("size"))
)
LOCK = Statement(select(t.pending_revisions).where(*_ONE).with_for_update())
FIND_SAME = Statement(
    select(*_SHOWN).where(
        _P.tenant_id == bindparam("tenant_id"),
        _P.plan_hash == bindparam("plan_hash"),
        _P.base_revision == bindparam("base_revision"),
        _P.state == "pending",
    )
)
ADD = Statement(
    insert(t.pending_revisions).values(
        {
            c.name: bindparam(c.name, type_=c.type)
            for c in _P
            if c.name not in {"created_at", "ended_at", "ended_by", "note", "revision"}
        }
    )
)
APPROVE = Statement(
    insert(t.pending_approvals).values(
        {c.name: bindparam(c.name, type_=c.type) for c in _A if c.name != "created_at"}
    )
)
APPROVERS = Statement(
    select(_A.principal_id, _A.principal_name)
    .where(_A.tenant_id == bindparam("tenant_id"), _A.pending_id == bindparam("pending_id"))
    .order_by(_A.created_at, _A.principal_id)
)
# The key goes with the text, and the plan's values with both.
END = Statement(
    update(t.pending_revisions)
    .where(
        _P.tenant_id == bindparam("the_tenant_id"),
        _P.pending_id == bindparam("the_pending_id", type_=_P.pending_id.type),
        _P.state == "pending",
    )
    .values(
        state=bindparam("new_state"),
        plan=bindparam("outline", type_=_P.plan.type),
        wrapped_key=null(),
        sealed=null(),
        ended_at=bindparam("now", type_=_P.ended_at.type),
        ended_by=bindparam("by"),
        note=bindparam("note"),
        revision=bindparam("revision", type_=_P.revision.type),
    )
)
DUE = Statement(
    select(_P.tenant_id, _P.pending_id, _P.expires_at)
    .where(
        _P.state == "pending",
        _P.expires_at <= bindparam("now", type_=_P.expires_at.type),
        tuple_(_P.expires_at, _P.pending_id)
        > tuple_(
            bindparam("after", type_=_P.expires_at.type),
            bindparam("after_id", type_=_P.pending_id.type),
        ),
    )
    .order_by(_P.expires_at, _P.pending_id)
    .limit(bindparam("size"))
)


def adding(row: Mapping[str, Any]) -> Bound:
    """What adds a pending revision."""
    return Bound(ADD, {**row, "plan": Jsonb(row["plan"]), "author": Jsonb(row["author"])})


def ending(row: Any, state: str, now: datetime, by: str, note: str, revision: int) -> Bound:
    """What ends a pending revision and shreds what was sealed with it."""
    ended = {"new_state": state, "now": now, "by": by, "note": note, "revision": revision}
    place = {"the_tenant_id": row.tenant_id, "the_pending_id": row.pending_id}
    return Bound(END, {**ended, **place, "outline": Jsonb(_outline(row.plan))})


def _outline(plan: Mapping[str, Any]) -> dict[str, Any]:
    """A plan without values: what was rejected may be so because of a secret in the wrong place."""
    return {
        **plan,
        "changes": [
            {**change, "fields": [_without_values(field) for field in change["fields"]]}
            for change in plan["changes"]
        ],
    }


def _without_values(field: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in field.items() if key not in {"before", "after"}}
