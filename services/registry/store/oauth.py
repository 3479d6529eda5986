"""Tokens that are refreshed under a lease, and authorisations under way."""

from typing import Any, Final

from sqlalchemy import (
    Interval,
    Table,
    Uuid,
    and_,
    bindparam,
    false,
    func,
    insert,
    null,
    or_,
    select,
    update,
)

from services.chassis.database import Statement
from services.registry import tables as t
from services.registry.store.credentials import OF_CURRENT, OF_KEY

_C, _V, _K, _S = t.credentials.c, t.credential_versions.c, t.data_keys.c, t.credential_status.c
_F, _L = t.oauth_flows.c, t.connect_links.c
_NOW = func.clock_timestamp()
_TENANT = bindparam("tenant_id", type_=_C.tenant_id.type)
_ID = bindparam("credential_id", type_=_C.credential_id.type)
_SEALED = (
    *(_V.version_id, _V.key_id, _V.wrapped_key, _V.sealed),
    *(_K.data_key_id, _K.key_version, _K.wrapped),
)
_CURRENT = (
    *(_C.tenant_id, _C.credential_id, _C.name, _C.type, _C.grant, _C.version, _C.scopes),
    *(_C.app_id, _C.provider, _C.config, _C.environment),
    *(_C.allowed_endpoints, _C.allowed_ranges),
    (_C.expires_at < _NOW).label("has_ended"),
)
_WITH_VERSION = t.credentials.outerjoin(t.credential_versions, OF_CURRENT).outerjoin(
    t.data_keys, OF_KEY
)

# A credential's status, held against whoever else would refresh it, and then it as it stands.
HOLD: Final = Statement(
    select(
        t.credential_status,
        (func.coalesce(_S.lease_until, _NOW) > _NOW).label("is_leased"),
        func.extract("epoch", _S.lease_until - _NOW).label("lease_left_s"),
        func.extract("epoch", _S.cool_until - _NOW).label("cool_left_s"),
        func.coalesce(_S.refresh_at <= _NOW, false()).label("is_due"),
        _NOW.label("now"),
    )
    .where(_S.tenant_id == _TENANT, _S.credential_id == _ID)
    .with_for_update()
)
CURRENT: Final = Statement(
    select(*_CURRENT, *_SEALED, _V.refresh_expires_at, _V.scopes.label("granted"))
    .select_from(_WITH_VERSION)
    .where(_C.tenant_id == _TENANT, _C.credential_id == _ID)
)
NAMED: Final = Statement(
    select(*_CURRENT, *_SEALED, _V.refresh_expires_at, _V.scopes.label("granted"))
    .select_from(_WITH_VERSION)
    .where(_C.tenant_id == _TENANT, _C.name == bindparam("name"))
)
LEASE: Final = Statement(
    update(t.credential_status)
    .where(
        _S.tenant_id == bindparam("the_tenant_id"),
        _S.credential_id == bindparam("the_credential_id", type_=_S.credential_id.type),
    )
    .values(
        lease_id=bindparam("new_lease_id", type_=_S.lease_id.type),
        lease_until=_NOW + bindparam("lasting", type_=Interval),
        fence=_S.fence + 1,
        intent_version=bindparam("version"),
    )
)
_THE = (
    _S.tenant_id == bindparam("the_tenant_id"),
    _S.credential_id == bindparam("the_credential_id", type_=_S.credential_id.type),
)
REFRESHED: Final = Statement(
    update(t.credential_status)
    .where(*_THE)
    .values(
        status="valid",
        reason="",
        validated_at=_NOW,
        failures=0,
        cool_until=null(),
        intent_version=null(),
        lease_id=null(),
        lease_until=null(),
    )
)
# Tokens that were recorded when others had the lease, or had given up: it is soon seen whether they
# hold. Who has the lease now keeps it.
RECORDED_LATE: Final = Statement(
    update(t.credential_status)
    .where(*_THE)
    .values(
        status="uncertain",
        reason=bindparam("why"),
        cool_until=null(),
        refresh_at=func.greatest(_NOW, _S.lease_until),
    )
)
# Only who holds the lease may say that it failed: a late one must not spoil what is good by now.
FAILED: Final = Statement(
    update(t.credential_status)
    .where(*_THE, _S.fence == bindparam("held_fence"))
    .values(
        status=func.coalesce(bindparam("new_status", type_=_S.status.type), _S.status),
        reason=bindparam("why"),
        failures=bindparam("times"),
        cool_until=_NOW + bindparam("cool", type_=Interval),
        refresh_at=_NOW + bindparam("cool", type_=Interval),
        intent_version=bindparam("intent", type_=_S.intent_version.type),
        lease_id=null(),
        lease_until=null(),
    )
)
RECONNECT: Final = Statement(
    update(t.credential_status)
    .where(*_THE, _S.fence == bindparam("held_fence"))
    .values(
        status="reconnect",
        reason=bindparam("why"),
        refresh_at=null(),
        cool_until=null(),
        intent_version=null(),
        lease_id=null(),
        lease_until=null(),
    )
)
# What is due in any tenant, as the system login; what somebody is at, or has failed of late, waits.
DUE: Final = Statement(
    select(_S.tenant_id, _S.credential_id)
    .where(
        _S.refresh_at <= _NOW,
        or_(_S.lease_until.is_(None), _S.lease_until <= _NOW),
        or_(_S.cool_until.is_(None), _S.cool_until <= _NOW),
    )
    .order_by(_S.refresh_at)
    .limit(bindparam("size"))
)
CLOCK: Final = Statement(select(_NOW.label("now")))


def _adding(table: Table) -> Statement:
    left_out = {"created_at", "used_at"}
    values: dict[str, Any] = {
        c.name: bindparam(c.name, type_=c.type) for c in table.c if c.name not in left_out
    }
    values["expires_at"] = _NOW + bindparam("lasting", type_=Interval)
    return Statement(insert(table).values(values).returning(table))


ADD_FLOW: Final = _adding(t.oauth_flows)
ADD_LINK: Final = _adding(t.connect_links)
# Used up by whoever comes first, in time; everybody else finds nothing.
USE_FLOW: Final = Statement(
    update(t.oauth_flows)
    .where(
        _F.tenant_id == bindparam("the_tenant_id"),
        _F.flow_id == bindparam("the_flow_id", type_=_F.flow_id.type),
        _F.state_hash == bindparam("hash"),
        _F.used_at.is_(None),
        _F.expires_at > _NOW,
        # Who calls for themselves must be who began it, and not by a link.
        or_(
            bindparam("principal_id", type_=Uuid).is_(None),
            and_(
                _F.principal_id == bindparam("principal_id", type_=Uuid), _F.browser_hash.is_(None)
            ),
        ),
        or_(
            _F.browser_hash.is_(None),
            _F.browser_hash == bindparam("shown", type_=_F.browser_hash.type),
        ),
    )
    .values(used_at=_NOW)
    .returning(t.oauth_flows)
)
FLOW_KEY: Final = Statement(
    select(t.data_keys).where(
        _K.tenant_id == _TENANT,
        _K.data_key_id == bindparam("data_key_id", type_=_K.data_key_id.type),
    )
)
_USABLE = and_(_L.tenant_id == _TENANT, _L.used_at.is_(None), _L.expires_at > _NOW)
FIND_LINK: Final = Statement(
    select(t.connect_links).where(
        _USABLE, _L.link_id == bindparam("link_id", type_=_L.link_id.type)
    )
)
USE_LINK: Final = Statement(
    update(t.connect_links)
    .where(
        _L.tenant_id == bindparam("the_tenant_id"),
        _L.link_id == bindparam("the_link_id", type_=_L.link_id.type),
        _L.used_at.is_(None),
    )
    .values(used_at=_NOW)
    .returning(_L.link_id)
)
LINKS: Final = Statement(
    select(t.connect_links)
    .where(_USABLE, _L.link_id > bindparam("after", type_=_L.link_id.type))
    .order_by(_L.link_id)
    .limit(bindparam("size"))
)
REVOKE_LINK: Final = Statement(
    update(t.connect_links)
    .where(_USABLE, _L.link_id == bindparam("the_link_id", type_=_L.link_id.type))
    .values(used_at=_NOW)
    .returning(t.connect_links)
)
