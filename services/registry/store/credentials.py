"""Credentials as they are read and changed outside the write path, version by version."""

from typing import Any, Final

from sqlalchemy import (
    Interval,
    and_,
    bindparam,
    case,
    func,
    insert,
    null,
    or_,
    select,
    true,
    update,
)

from services.chassis.database import Statement
from services.registry import tables as t

_C, _V, _K = t.credentials.c, t.credential_versions.c, t.data_keys.c
_S = t.credential_status.c
MINE = _C.tenant_id == bindparam("tenant_id", type_=_C.tenant_id.type)
_NAMED = (MINE, _C.name == bindparam("name"))
ONE = (MINE, _C.credential_id == bindparam("credential_id", type_=_C.credential_id.type))
_NOW = func.clock_timestamp()
# Durations are reckoned by the database's clock alone: those of processes may be minutes apart.
_LEFT_S = func.extract("epoch", _V.expires_at - _NOW)

OF_STATUS = and_(_S.tenant_id == _C.tenant_id, _S.credential_id == _C.credential_id)
OF_CURRENT = and_(
    _V.tenant_id == _C.tenant_id, _V.credential_id == _C.credential_id, _V.version == _C.version
)
OF_KEY = and_(_K.tenant_id == _V.tenant_id, _K.data_key_id == _V.data_key_id)
IS_HEARD_OF = or_(*(_S.status == word for word in ("unknown", "valid", "invalid")))
"""How it stands is what its use tells."""
# An intent whose lease is over without an end makes it uncertain. What has ended by what was
# declared says so, whatever was heard of it before.
STANDING: Final = case(
    (
        and_(
            _S.intent_version.is_not(None),
            func.coalesce(_S.lease_until < _NOW, true()),
            _S.status != "reconnect",
            _S.status != "revoked",
        ),
        "uncertain",
    ),
    (and_(IS_HEARD_OF, _C.expires_at <= _NOW), "expired"),
    else_=_S.status,
).label("status")
_APP = t.credentials.alias("app")
_APPS = and_(_APP.c.tenant_id == _C.tenant_id, _APP.c.credential_id == _C.app_id)
_VENUES = and_(t.venues.c.tenant_id == _C.tenant_id, t.venues.c.venue_id == _C.venue_id)

ADD_VERSION: Final = Statement(
    insert(t.credential_versions).values(
        {
            c.name: bindparam(c.name, type_=c.type)
            for c in _V
            if c.name not in {"created_at", "overlap_until", "shredded_at"}
        }
    )
)
_SEALED = (_V.version_id, _V.key_id, _V.wrapped_key, _V.sealed)
_KEY = (_K.data_key_id, _K.key_version, _K.wrapped)
HAS_TOKEN = _V.fingerprints.has_key("access_token")
_NEWEST = (
    select(func.max(_V.version))
    .where(_V.tenant_id == _C.tenant_id, _V.credential_id == _C.credential_id)
    .correlate(t.credentials)
    .scalar_subquery()
)
RESOLVE: Final = Statement(
    select(
        *(_C.tenant_id, _C.credential_id, _C.name, _C.type, _C.grant, _C.version),
        *(_C.allowed_endpoints, _C.allowed_ranges, _V.shredded_at),
        *_SEALED,
        *_KEY,
        func.coalesce(_NEWEST, 0).label("newest"),
        # Of tokens that were brought along the access token may be missing.
        func.coalesce(HAS_TOKEN, _C.version > 0).label("has_token"),
        func.coalesce(_S.status, "unknown").label("status"),
        _LEFT_S.label("left_s"),
        (_C.expires_at < _NOW).label("has_ended"),
        func.extract("epoch", _C.expires_at - _NOW).label("ends_in_s"),
    )
    .select_from(
        t.credentials.outerjoin(t.credential_versions, OF_CURRENT)
        .outerjoin(t.data_keys, OF_KEY)
        .outerjoin(t.credential_status, OF_STATUS)
    )
    .where(*_NAMED)
)
# Older versions that go on beside the current one, the newest first.
OVERLAPPING: Final = Statement(
    select(
        *(_V.tenant_id, _V.credential_id, _V.version),
        *_SEALED,
        *_KEY,
        func.extract("epoch", _V.overlap_until - _NOW).label("left_s"),
    )
    .select_from(
        t.credential_versions.join(t.data_keys, OF_KEY).join(
            t.credentials, and_(_C.tenant_id == _V.tenant_id, _C.credential_id == _V.credential_id)
        )
    )
    .where(*_NAMED, _V.version < _C.version, _V.overlap_until > _NOW, _V.sealed.is_not(None))
    .order_by(_V.version.desc())
)
# A version that Tenon made itself and may tell, while it counts.
TOLD: Final = Statement(
    select(*(_V.tenant_id, _V.credential_id, _V.version), *_SEALED, *_KEY)
    .select_from(
        t.credential_versions.join(t.data_keys, OF_KEY).join(
            t.credentials, and_(_C.tenant_id == _V.tenant_id, _C.credential_id == _V.credential_id)
        )
    )
    .where(
        *ONE,
        _V.version == bindparam("version"),
        _V.origin == "generated",
        _V.public_key == "",
        _V.sealed.is_not(None),
        or_(_V.version == _C.version, _V.overlap_until > _NOW),
    )
)

_SHOWN = (
    *(c for c in _C if c.name not in {"app_id", "venue_id"}),
    func.coalesce(_APP.c.name, "").label("ref_app"),
    _APP.c.expires_at.label("app_expires_at"),
    func.coalesce(t.venues.c.name, "").label("ref_venue"),
    *(c for c in _S if c.name not in {"tenant_id", "credential_id", "status"}),
    STANDING,
    func.coalesce(_V.created_at, _C.created_at).label("rotated_at"),
    _V.fingerprints,
    _V.public_key,
    _V.scopes.label("granted_scopes"),
    _V.expires_at.label("token_expires_at"),
    _V.refresh_expires_at,
    _NOW.label("now"),
)
_SHOW = select(*_SHOWN).select_from(
    t.credentials.outerjoin(t.credential_versions, OF_CURRENT)
    .outerjoin(t.credential_status, OF_STATUS)
    .outerjoin(_APP, _APPS)
    .outerjoin(t.venues, _VENUES)
)
LIST: Final = Statement(
    _SHOW.where(MINE, _C.name > bindparam("after")).order_by(_C.name).limit(bindparam("size"))
)
GET: Final = Statement(_SHOW.where(*_NAMED))
VERSIONS: Final = Statement(
    select(
        *(c for c in _V if c.name not in {"wrapped_key", "sealed", "key_id", "version_id"}),
        _K.key_version,
    )
    .select_from(t.credential_versions.join(t.data_keys, OF_KEY))
    .where(
        _V.tenant_id == bindparam("tenant_id", type_=_V.tenant_id.type),
        _V.credential_id == bindparam("credential_id", type_=_V.credential_id.type),
    )
    .order_by(_V.version.desc())
)
# Whoever changes a credential's version holds its status first; what is read is read after that.
HOLD: Final = Statement(
    select(_S.fence)
    .where(
        _S.tenant_id == bindparam("tenant_id", type_=_S.tenant_id.type),
        _S.credential_id == select(_C.credential_id).where(*_NAMED).scalar_subquery(),
    )
    .with_for_update()
)
HOLD_ONE: Final = Statement(
    select(_S.fence)
    .where(
        _S.tenant_id == bindparam("tenant_id", type_=_S.tenant_id.type),
        _S.credential_id == bindparam("credential_id", type_=_S.credential_id.type),
    )
    .with_for_update()
)
HELD: Final = Statement(select(t.credentials).where(*_NAMED))

THE_ONE = (
    _C.tenant_id == bindparam("the_tenant_id"),
    _C.credential_id == bindparam("the_credential_id", type_=_C.credential_id.type),
)
ITS_STATUS = (
    _S.tenant_id == bindparam("the_tenant_id"),
    _S.credential_id == bindparam("the_credential_id", type_=_S.credential_id.type),
)
_ITS_VERSIONS = (
    _V.tenant_id == bindparam("the_tenant_id"),
    _V.credential_id == bindparam("the_credential_id", type_=_V.credential_id.type),
)
MOVE: Final = Statement(
    update(t.credentials)
    .where(*THE_ONE, _C.version == bindparam("old_version"))
    .values(version=bindparam("new_version"), updated_at=func.now())
)
OVERLAP: Final = Statement(
    update(t.credential_versions)
    .where(*_ITS_VERSIONS, _V.version == bindparam("the_version"), _V.sealed.is_not(None))
    .values(overlap_until=_NOW + bindparam("overlap", type_=Interval))
)
_SHREDDED: Final[dict[str, Any]] = {
    "wrapped_key": null(),
    "sealed": null(),
    "shredded_at": func.now(),
}
SHRED: Final = Statement(
    update(t.credential_versions)
    .where(*_ITS_VERSIONS, _V.version == bindparam("the_version"), _V.sealed.is_not(None))
    .values(_SHREDDED)
)
SHRED_ALL: Final = Statement(
    update(t.credential_versions).where(*_ITS_VERSIONS, _V.sealed.is_not(None)).values(_SHREDDED)
)
REVOKE: Final = Statement(
    update(t.credential_status)
    .where(*ITS_STATUS)
    .values(
        status="revoked",
        reason="",
        revoked_at=func.now(),
        revoked_by=bindparam("by"),
        revoke_reason=bindparam("why"),
        refresh_at=null(),
        rotate_at=null(),
        warn_at=null(),
        lease_id=null(),
        lease_until=null(),
        intent_version=null(),
    )
)

SLUG: Final = Statement(
    select(t.tenants.c.slug).where(
        t.tenants.c.tenant_id == bindparam("tenant_id", type_=t.tenants.c.tenant_id.type)
    )
)
