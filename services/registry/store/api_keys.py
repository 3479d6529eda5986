"""API keys as they are managed; their digests stay where authentication reads them."""

from sqlalchemy import (
    DateTime,
    Interval,
    Text,
    bindparam,
    case,
    func,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import UUID

from services.chassis.database import Statement
from services.registry import tables as t
from services.registry.store.principals import OWNED, here

_K, _P = t.api_keys.c, t.principals.c

LIVING = (_K.revoked_at.is_(None)) & (or_(_K.expires_at.is_(None), _K.expires_at > func.now()))
_STATE = case((_K.revoked_at.is_not(None), "revoked"), (LIVING, "live"), else_="expired")
_HERE = here(
    select(
        *(column for column in _K if column.name != "digest"), _STATE.label("state")
    ).select_from(OWNED.join(t.api_keys, _K.principal_id == _P.principal_id))
)
FIND = Statement(_HERE.where(_K.key_id == bindparam("key_id")))
PAGE = Statement(
    _HERE.where(
        tuple_(_K.name, _K.key_id)
        > tuple_(bindparam("after_name", type_=Text), bindparam("after_id", type_=Text)),
        or_(
            bindparam("principal_id", type_=UUID(as_uuid=True)).is_(None),
            _K.principal_id == bindparam("principal_id", type_=UUID(as_uuid=True)),
        ),
    )
    .order_by(_K.name, _K.key_id)
    .limit(bindparam("size"))
)
LIVE = Statement(
    select(_K.key_id).where(
        _K.principal_id == bindparam("principal_id"), _K.name == bindparam("name"), LIVING
    )
)
END = Statement(
    update(t.api_keys)
    .where(_K.key_id == bindparam("the_key_id"), _K.revoked_at.is_(None))
    .values(
        # LEAST passes over nulls: one without an end gets this one.
        expires_at=func.least(
            _K.expires_at,
            func.now() + bindparam("overlap", type_=Interval),
            type_=DateTime(timezone=True),
        )
    )
)
REVOKE = Statement(
    update(t.api_keys)
    .where(_K.key_id == bindparam("the_key_id"))
    .values(
        # The clock, not the transaction's beginning, which may lie before the key's.
        revoked_at=func.clock_timestamp(),
        revoked_by=bindparam("revoked_by"),
        revoke_reason=bindparam("revoke_reason"),
    )
)
PERMISSIONS = Statement(select(t.permissions.c.permission))
NOW = Statement(select(func.now().label("now")))
