"""Principals, their keys and grants: all read by the system login, before any tenant is known."""

from sqlalchemy import bindparam, func, insert, select

from services.chassis.database import Statement
from services.registry import tables as t

_KEY, _P, _G, _RP = t.api_keys.c, t.principals.c, t.grants.c, t.role_permissions.c
_PG, _T = t.platform_grants.c, t.tenants.c

FIND_KEY = Statement(
    select(
        _KEY.digest,
        _KEY.scopes,
        _KEY.expires_at,
        _KEY.revoked_at,
        _P.principal_id,
        _P.kind,
        _P.display_name,
    )
    .select_from(t.api_keys.join(t.principals, _P.principal_id == _KEY.principal_id))
    .where(_KEY.key_id == bindparam("key_id"))
)
_permissions = func.array_agg(_RP.permission).label("permissions")
TENANT_GRANTS = Statement(
    select(_T.slug, _T.tenant_id, _G.role, _permissions)
    .select_from(
        t.grants.join(t.tenants, _T.tenant_id == _G.tenant_id).join(
            t.role_permissions, _RP.role == _G.role
        )
    )
    .where(_G.principal_id == bindparam("principal_id"))
    .group_by(_T.slug, _T.tenant_id, _G.role)
)
PLATFORM_GRANTS = Statement(
    select(_PG.role, _permissions)
    .select_from(t.platform_grants.join(t.role_permissions, _RP.role == _PG.role))
    .where(_PG.principal_id == bindparam("principal_id"))
    .group_by(_PG.role)
)
ADD_PRINCIPAL = Statement(
    insert(t.principals).values({c: bindparam(c) for c in ("principal_id", "kind", "display_name")})
)
ADD_KEY = Statement(
    insert(t.api_keys).values(
        {
            c.name: bindparam(c.name, type_=c.type)
            for c in _KEY
            if c.name not in {"created_at", "revoked_at"}
        }
    )
)
ADD_PLATFORM_GRANT = Statement(
    insert(t.platform_grants).values({c: bindparam(c) for c in ("principal_id", "role")})
)
ADD_GRANT = Statement(
    insert(t.grants).values({c: bindparam(c) for c in ("tenant_id", "principal_id", "role")})
)
