"""The platform's grants, and the roles there are."""

from sqlalchemy import Text, bindparam, delete, false, func, insert, or_, select, true, tuple_
from sqlalchemy.dialects.postgresql import UUID

from services.chassis.database import Statement
from services.registry import tables as t

_G, _P, _R = t.platform_grants.c, t.principals.c, t.roles.c
_RP, _OWN = t.role_permissions.c, t.tenant_roles.c
_PRINCIPAL = bindparam("principal_id", type_=UUID(as_uuid=True))

_ROWS = select(t.platform_grants, _P.display_name).select_from(
    t.platform_grants.join(t.principals, _P.principal_id == _G.principal_id)
)
_ONE = (_G.principal_id == bindparam("principal_id"), _G.role == bindparam("role"))
FIND = Statement(_ROWS.where(*_ONE))
PAGE = Statement(
    _ROWS.where(
        tuple_(_G.principal_id, _G.role)
        > tuple_(
            bindparam("after_principal", type_=UUID(as_uuid=True)),
            bindparam("after_role", type_=Text),
        ),
        or_(_PRINCIPAL.is_(None), _G.principal_id == _PRINCIPAL),
    )
    .order_by(_G.principal_id, _G.role)
    .limit(bindparam("size"))
)
ADD = Statement(
    insert(t.platform_grants).values(
        {
            name: bindparam(name, type_=_G[name].type)
            for name in ("principal_id", "role", "kinds", "sources", "created_by")
        }
    )
)
REMOVE = Statement(delete(t.platform_grants).where(*_ONE))
ROLES = Statement(
    select(
        _R.role,
        _R.description,
        _R.needs_reason,
        func.array(
            select(_RP.permission)
            .where(_RP.role == _R.role)
            .order_by(_RP.permission)
            .scalar_subquery()
        ).label("permissions"),
        false().label("own"),
    ).order_by(_R.level)
)
OWN_ROLES = Statement(
    select(
        _OWN.name.label("role"),
        _OWN.description,
        false().label("needs_reason"),
        _OWN.permissions,
        true().label("own"),
    )
    .where(_OWN.tenant_id == bindparam("tenant_id"))
    .order_by(_OWN.name)
)
