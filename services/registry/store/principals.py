"""Principals as they are managed: those a tenant owns, and the platform's."""

from sqlalchemy import Text, bindparam, case, func, insert, null, or_, select, update
from sqlalchemy.dialects.postgresql import UUID
from sqlalchemy.sql import Select

from services.chassis.database import Statement
from services.registry import tables as t

_P, _TP = t.principals.c, t.tenant_principals.c
TENANT = bindparam("tenant_id", type_=UUID(as_uuid=True))


def here(found: Select) -> Select:  # type: ignore[type-arg]
    """Only what is of principals that a tenant owns, or (null) nobody but the platform."""
    return found.where(_TP.tenant_id.is_not_distinct_from(TENANT))


OWNED = t.principals.outerjoin(t.tenant_principals, _TP.principal_id == _P.principal_id)
_HERE = here(select(t.principals).select_from(OWNED))
_ONE = _HERE.where(_P.principal_id == bindparam("principal_id"))
FIND = Statement(_ONE)
# What refers to it may still be added by others.
LOCK = Statement(_ONE.with_for_update(of=t.principals, key_share=True))
PAGE = Statement(
    _HERE.where(
        _P.principal_id > bindparam("after", type_=UUID(as_uuid=True)),
        or_(bindparam("kind", type_=Text).is_(None), _P.kind == bindparam("kind", type_=Text)),
    )
    .order_by(_P.principal_id)
    .limit(bindparam("size"))
)
ADD = Statement(
    insert(t.principals)
    .values(
        {
            name: bindparam(name)
            for name in ("principal_id", "kind", "issuer", "subject", "display_name", "email")
        }
    )
    .returning(t.principals)
)
OWN = Statement(
    insert(t.tenant_principals).values(
        tenant_id=bindparam("tenant_id"), principal_id=bindparam("principal_id")
    )
)
DISABLE_OF_TENANT = Statement(
    update(t.principals)
    .where(
        _P.principal_id.in_(select(_TP.principal_id).where(_TP.tenant_id == TENANT)),
        _P.disabled_at.is_(None),
    )
    .values(disabled_at=func.now())
    .returning(_P.principal_id)
)
SET_DISABLED = Statement(
    update(t.principals)
    .where(_P.principal_id == bindparam("the_principal_id"))
    .values(disabled_at=case((bindparam("disabled").is_(True), func.now()), else_=null()))
    .returning(t.principals)
)
