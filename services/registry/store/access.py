"""Principals, their keys and grants: all read by the system login, before any tenant is known."""

from typing import Any

from sqlalchemy import Text, and_, bindparam, case, cast, func, insert, select, true
from sqlalchemy.dialects.postgresql import ARRAY, array
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.sql.elements import ColumnElement

from services.chassis.database import Statement
from services.chassis.tenancy import ANY_SOURCE
from services.registry import tables as t
from services.registry.store.api_keys import LIVING
from services.registry.store.tenants import state_of

_KEY, _P, _RP, _R = t.api_keys.c, t.principals.c, t.role_permissions.c, t.roles.c
_PG, _T, _RB, _OWN = t.platform_grants.c, t.tenants.c, t.role_bindings.c, t.tenant_roles.c
_S = t.staff.c

_WHO = (_P.principal_id, _P.kind, _P.issuer, _P.subject, _P.display_name, _P.disabled_at)

FIND_KEY = Statement(
    select(
        _KEY.key_id,
        _KEY.digest,
        _KEY.scopes,
        _KEY.address_ranges,
        _KEY.expires_at,
        _KEY.revoked_at,
        _KEY.created_by_id,
        *_WHO,
    )
    .select_from(t.api_keys.join(t.principals, _P.principal_id == _KEY.principal_id))
    .where(_KEY.key_id == bindparam("key_id"))
)
FIND_IDENTITY = Statement(
    select(*_WHO).where(
        _P.kind == bindparam("kind"),
        _P.issuer == bindparam("issuer"),
        _P.subject == bindparam("subject"),
    )
)
_ENABLED = and_(_P.principal_id == bindparam("principal_id"), _P.disabled_at.is_(None))
FIND_ENABLED = Statement(select(*_WHO).where(_ENABLED))
# The same, if the key that it once called with still holds.
FIND_BY_KEY = Statement(
    select(_KEY.scopes, *_WHO)
    .select_from(t.api_keys.join(t.principals, _P.principal_id == _KEY.principal_id))
    .where(_ENABLED, _KEY.key_id == bindparam("key_id"), LIVING)
)


def _add_bound_principal() -> Statement:
    """A principal for an identity that a role binding names; nothing where there is one by now."""
    row = {
        name: bindparam(name, type_=_P[name].type)
        for name in ("principal_id", "kind", "issuer", "subject", "display_name", "email")
    }
    bound = (
        select(true())
        .select_from(t.role_bindings.join(t.tenants, _T.tenant_id == _RB.tenant_id))
        .where(
            _RB.principal_kind == row["kind"],
            _RB.issuer == row["issuer"],
            _RB.subject == row["subject"],
            _T.state != "purged",
        )
        .exists()
    )
    new = upsert(t.principals).from_select(list(row), select(*row.values()).where(bound))
    return Statement(new.on_conflict_do_nothing())


ADD_BOUND_PRINCIPAL = _add_bound_principal()


def _tenant_grants() -> Statement:
    """One principal's roles in tenants: the bindings that name its identity."""
    held = func.array(select(_RP.permission).where(_RP.role == _RB.role).scalar_subquery())
    subject = and_(
        _RB.principal_kind == _P.kind, _RB.issuer == _P.issuer, _RB.subject == _P.subject
    )
    own = and_(_OWN.tenant_id == _RB.tenant_id, _OWN.name == _RB.role)
    # Where a binding names no source, a source is itself alone and whoever else is any.
    itself = case((_RB.principal_kind == "source", _RB.subject), else_=ANY_SOURCE)
    sources = case((func.cardinality(_RB.sources) > 0, _RB.sources), else_=array([itself]))
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
            sources.label("sources"),
            func.coalesce(_R.needs_reason, ~true()).label("needs_reason"),
        )
        .select_from(found)
        .where(_P.principal_id == bindparam("principal_id"), _T.state != "purged")
        .order_by(_T.slug, _RB.role)
    )


TENANT_GRANTS = _tenant_grants()


def _platform_grants() -> Statement:
    """One principal's roles in every tenant: what it was given, and what it is of the staff."""
    staff_role = func.concat("STAFF_", func.upper(_S.role))
    flags = func.jsonb_each(_S.permissions).table_valued("key", "value")
    flagged = func.array(select(flags.c.key).scalar_subquery())
    given = select(
        _PG.role,
        _permissions_of(_PG.role).label("permissions"),
        _PG.kinds,
        _PG.sources,
        _R.needs_reason,
    ).select_from(t.platform_grants.join(t.roles, _R.role == _PG.role))
    staff = select(
        staff_role,
        func.array_cat(_permissions_of(staff_role), flagged, type_=ARRAY(Text)),
        cast(array([], type_=Text), ARRAY(Text)),
        cast(array([ANY_SOURCE]), ARRAY(Text)),
        true(),
    ).select_from(t.staff)
    return Statement(
        given.where(_PG.principal_id == bindparam("principal_id"))
        .union_all(staff.where(_S.principal_id == bindparam("principal_id")))
        .order_by("role")
    )


def _permissions_of(role: ColumnElement[str]) -> ColumnElement[Any]:
    return func.array(select(_RP.permission).where(_RP.role == role).scalar_subquery())


PLATFORM_GRANTS = _platform_grants()
ADD_PRINCIPAL = Statement(
    insert(t.principals).values(
        {c: bindparam(c) for c in ("principal_id", "kind", "issuer", "subject", "display_name")}
    )
)
_OF_NEW_KEY = (
    *("key_id", "principal_id", "name", "digest", "scopes", "address_ranges", "last4"),
    *("environment", "metadata", "created_by", "created_by_id", "expires_at"),
)
ADD_KEY = Statement(
    insert(t.api_keys).values({c: bindparam(c, type_=_KEY[c].type) for c in _OF_NEW_KEY})
)
ADD_PLATFORM_GRANT = Statement(
    insert(t.platform_grants).values({c: bindparam(c) for c in ("principal_id", "role")})
)
