"""Principals, their keys and grants: all read by the system login, before any tenant is known."""

from sqlalchemy import and_, bindparam, func, insert, select, true

from services.chassis.database import Statement
from services.registry import tables as t
from services.registry.store.tenants import state_of

_KEY, _P, _RP, _R = t.api_keys.c, t.principals.c, t.role_permissions.c, t.roles.c
_PG, _T, _RB, _OWN = t.platform_grants.c, t.tenants.c, t.role_bindings.c, t.tenant_roles.c

FIND_KEY = Statement(
    select(
        _KEY.key_id,
        _KEY.digest,
        _KEY.scopes,
        _KEY.address_ranges,
        _KEY.expires_at,
        _KEY.revoked_at,
        _P.principal_id,
        _P.kind,
        _P.display_name,
        _P.disabled_at,
    )
    .select_from(t.api_keys.join(t.principals, _P.principal_id == _KEY.principal_id))
    .where(_KEY.key_id == bindparam("key_id"))
)


def _tenant_grants() -> Statement:
    """One principal's roles in tenants: the bindings that name its identity."""
    held = func.array(select(_RP.permission).where(_RP.role == _RB.role).scalar_subquery())
    subject = and_(
        _RB.principal_kind == _P.kind, _RB.issuer == _P.issuer, _RB.subject == _P.subject
    )
    own = and_(_OWN.tenant_id == _RB.tenant_id, _OWN.name == _RB.role)
    found = (
        t.principals.join(t.role_bindings, subject)
        .join(t.tenants, _T.tenant_id == _RB.tenant_id)
        .outerjoin(t.tenant_roles, own)
        .outerjoin(t.roles, _R.role == _RB.role)
    )
    return Statement(
        select(
            _T.slug,
            _T.tenant_id,
            state_of(_T).label("state"),
            _RB.role,
            func.coalesce(_OWN.permissions, held).label("permissions"),
            _RB.kinds,
            _RB.sources,
            func.coalesce(_R.needs_reason, ~true()).label("needs_reason"),
        )
        .select_from(found)
        .where(_P.principal_id == bindparam("principal_id"), _T.state != "purged")
        .order_by(_T.slug, _RB.role)
    )


TENANT_GRANTS = _tenant_grants()
PLATFORM_GRANTS = Statement(
    select(
        _PG.role,
        func.array(select(_RP.permission).where(_RP.role == _PG.role).scalar_subquery()).label(
            "permissions"
        ),
        _PG.kinds,
        _PG.sources,
        _R.needs_reason,
    )
    .select_from(t.platform_grants.join(t.roles, _R.role == _PG.role))
    .where(_PG.principal_id == bindparam("principal_id"))
    .order_by(_PG.role)
)
ADD_PRINCIPAL = Statement(
    insert(t.principals).values(
        {c: bindparam(c) for c in ("principal_id", "kind", "issuer", "subject", "display_name")}
    )
)
_OF_NEW_KEY = (
    *("key_id", "principal_id", "name", "digest", "scopes", "address_ranges", "last4"),
    *("metadata", "created_by", "expires_at"),
)
ADD_KEY = Statement(
    insert(t.api_keys).values({c: bindparam(c, type_=_KEY[c].type) for c in _OF_NEW_KEY})
)
ADD_PLATFORM_GRANT = Statement(
    insert(t.platform_grants).values({c: bindparam(c) for c in ("principal_id", "role")})
)
