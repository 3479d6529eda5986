"""Credentials as they are read and changed outside the write path: versions, status, use."""

from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    DateTime,
    Interval,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    cast,
    false,
    func,
    insert,
    literal,
    not_,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.sql.elements import ColumnElement

from services.chassis.database import Statement
from services.registry import tables as t

_C, _V, _K = t.credentials.c, t.credential_versions.c, t.data_keys.c
_S, _U = t.credential_status.c, t.credential_uses.c
_MINE = _C.tenant_id == bindparam("tenant_id", type_=_C.tenant_id.type)
_NAMED = (_MINE, _C.name == bindparam("name"))
_ONE = (_MINE, _C.credential_id == bindparam("credential_id", type_=_C.credential_id.type))
_NOW = func.clock_timestamp()
# Durations are reckoned by the database's clock alone: those of processes may be minutes apart.
_LEFT_S = func.extract("epoch", _V.expires_at - _NOW)

_OF_STATUS = and_(_S.tenant_id == _C.tenant_id, _S.credential_id == _C.credential_id)
_OF_CURRENT = and_(
    _V.tenant_id == _C.tenant_id, _V.credential_id == _C.credential_id, _V.version == _C.version
)
_OF_KEY = and_(_K.tenant_id == _V.tenant_id, _K.data_key_id == _V.data_key_id)
_IS_HEARD_OF = or_(*(_S.status == word for word in ("unknown", "valid", "invalid")))
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
    (and_(_IS_HEARD_OF, _C.expires_at <= _NOW), "expired"),
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
_HAS_TOKEN = _V.fingerprints.has_key("access_token")
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
        func.coalesce(_HAS_TOKEN, _C.version > 0).label("has_token"),
        func.coalesce(_S.status, "unknown").label("status"),
        _LEFT_S.label("left_s"),
        (_C.expires_at < _NOW).label("has_ended"),
        func.extract("epoch", _C.expires_at - _NOW).label("ends_in_s"),
    )
    .select_from(
        t.credentials.outerjoin(t.credential_versions, _OF_CURRENT)
        .outerjoin(t.data_keys, _OF_KEY)
        .outerjoin(t.credential_status, _OF_STATUS)
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
        t.credential_versions.join(t.data_keys, _OF_KEY).join(
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
        t.credential_versions.join(t.data_keys, _OF_KEY).join(
            t.credentials, and_(_C.tenant_id == _V.tenant_id, _C.credential_id == _V.credential_id)
        )
    )
    .where(
        *_ONE,
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
    t.credentials.outerjoin(t.credential_versions, _OF_CURRENT)
    .outerjoin(t.credential_status, _OF_STATUS)
    .outerjoin(_APP, _APPS)
    .outerjoin(t.venues, _VENUES)
)
LIST: Final = Statement(
    _SHOW.where(_MINE, _C.name > bindparam("after")).order_by(_C.name).limit(bindparam("size"))
)
GET: Final = Statement(_SHOW.where(*_NAMED))
VERSIONS: Final = Statement(
    select(
        *(c for c in _V if c.name not in {"wrapped_key", "sealed", "key_id", "version_id"}),
        _K.key_version,
    )
    .select_from(t.credential_versions.join(t.data_keys, _OF_KEY))
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

_THE_ONE = (
    _C.tenant_id == bindparam("the_tenant_id"),
    _C.credential_id == bindparam("the_credential_id", type_=_C.credential_id.type),
)
_ITS_STATUS = (
    _S.tenant_id == bindparam("the_tenant_id"),
    _S.credential_id == bindparam("the_credential_id", type_=_S.credential_id.type),
)
_ITS_VERSIONS = (
    _V.tenant_id == bindparam("the_tenant_id"),
    _V.credential_id == bindparam("the_credential_id", type_=_V.credential_id.type),
)
MOVE: Final = Statement(
    update(t.credentials)
    .where(*_THE_ONE, _C.version == bindparam("old_version"))
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
    .where(*_ITS_STATUS)
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

# A credential's status begins with it, and begins anew with other values.
_NEW_STATUS = upsert(t.credential_status).values(
    tenant_id=bindparam("tenant_id", type_=_S.tenant_id.type),
    credential_id=bindparam("credential_id", type_=_S.credential_id.type),
)
BEGIN_STATUS: Final = Statement(
    _NEW_STATUS.on_conflict_do_update(
        index_elements=["tenant_id", "credential_id"],
        set_={
            "status": "unknown",
            "reason": "",
            "failures": 0,
            "cool_until": null(),
            "intent_version": null(),
            "lease_id": null(),
            "lease_until": null(),
            "fence": _S.fence + 1,
            "noticed": [],
            "revoked_at": null(),
            "revoked_by": "",
            "revoke_reason": "",
        },
    )
)
KEEP_STATUS: Final = Statement(_NEW_STATUS.on_conflict_do_nothing())

_ROTATION = cast(_C.rotation["every"].astext, Interval)
_OF_THE_ONE = and_(*_THE_ONE, _S.tenant_id == _C.tenant_id, _S.credential_id == _C.credential_id)
_CURRENT_EXPIRY = (
    select(_V.expires_at).where(_OF_CURRENT).correlate(t.credentials).scalar_subquery()
)
_CURRENT_END = (
    select(_V.refresh_expires_at).where(_OF_CURRENT).correlate(t.credentials).scalar_subquery()
)
_CURRENT_BEGIN = select(_V.created_at).where(_OF_CURRENT).correlate(t.credentials).scalar_subquery()
_TOKEN_LIFE = cast(_CURRENT_EXPIRY - _CURRENT_BEGIN, Interval)
# Nothing is to be done for what was taken back, or cannot go on by itself.
_GOES_ON = and_(_S.status != "revoked", _S.status != "reconnect")
_GETS_TOKENS = and_(
    _GOES_ON,
    _C.type == "oauth2",
    _C.app_id.is_not(None),
    or_(_C.version > 0, _C.grant == "client_credentials", _C.grant == "jwt_bearer"),
)
LEAD = bindparam("lead", type_=Interval)
_CURRENT_HAS_TOKEN = (
    select(_HAS_TOKEN).where(_OF_CURRENT).correlate(t.credentials).scalar_subquery()
)
_ROTATE_AT = case(
    (_S.status != "revoked", func.coalesce(_CURRENT_BEGIN, _NOW) + _ROTATION), else_=null()
)
_WARN_AT = case(
    (
        _S.status != "revoked",
        func.least(_C.expires_at, _CURRENT_END) - bindparam("warning", type_=Interval),
    ),
    else_=null(),
)


def _unless_told(moment: Any, what: str) -> Any:
    """A moment at which something is told, once: null where it has come and that is told."""
    is_told = literal(what, Text) == any_(_S.noticed)
    return case((and_(moment <= _NOW, is_told), null()), else_=moment)


def _told_still(noticed: Any, moment: Any, what: str) -> Any:
    """What was told, without what is not so any more."""
    return case((moment <= _NOW, noticed), else_=func.array_remove(noticed, what))


# When the leader looks at it again, from what is wanted of it and what its current version says.
# Tokens are refreshed ahead of their end: by the lead, or a fifth of their life if that is shorter.
PLAN: Final = Statement(
    update(t.credential_status)
    .where(_OF_THE_ONE)
    .values(
        refresh_at=case(
            (
                _GETS_TOKENS,
                case(
                    (not_(func.coalesce(_CURRENT_HAS_TOKEN, false())), _NOW),
                    else_=_CURRENT_EXPIRY - func.least(LEAD, _TOKEN_LIFE.op("/")(5)),
                ),
            ),
            else_=null(),
        ),
        rotate_at=_unless_told(_ROTATE_AT, "rotation_due"),
        warn_at=_unless_told(_WARN_AT, "expiring"),
        noticed=_told_still(
            _told_still(_S.noticed, _ROTATE_AT, "rotation_due"), _WARN_AT, "expiring"
        ),
    )
)

# What leaders look for in any tenant, as the system login.
DUE: Final = Statement(
    select(_S.tenant_id, _S.credential_id)
    .where(or_(_S.rotate_at <= _NOW, _S.warn_at <= _NOW))
    # What fails stays due: in one order it would keep the rest out for good.
    .order_by(func.random())
    .limit(bindparam("size"))
)
# What is due of one, looked at again inside its tenant once it is held.
WHAT_IS_DUE: Final = Statement(
    select(
        t.credentials,
        _S.noticed,
        (_S.rotate_at <= _NOW).label("rotation_is_due"),
        (_S.warn_at <= _NOW).label("warning_is_due"),
        select(_V.origin)
        .where(_OF_CURRENT)
        .correlate(t.credentials)
        .scalar_subquery()
        .label("origin"),
    )
    .select_from(t.credentials.join(t.credential_status, _OF_STATUS))
    .where(*_ONE)
)
NOTICED: Final = Statement(
    update(t.credential_status)
    .where(*_ITS_STATUS)
    .values(noticed=func.array_append(_S.noticed, bindparam("what", type_=Text)))
)
ROTATION_NOTICED: Final = Statement(
    update(t.credential_status).where(*_ITS_STATUS).values(rotate_at=null())
)
WARNED: Final = Statement(update(t.credential_status).where(*_ITS_STATUS).values(warn_at=null()))


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
    ).where(_MINE, _C.credential_id == item.c.ids)
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
    told = and_(_IS_HEARD_OF, item.c.seen_versions == current)
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
    .where(*_ITS_STATUS)
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

SLUG: Final = Statement(
    select(t.tenants.c.slug).where(
        t.tenants.c.tenant_id == bindparam("tenant_id", type_=t.tenants.c.tenant_id.type)
    )
)
