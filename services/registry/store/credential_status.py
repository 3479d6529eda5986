"""How credentials stand, and when they want attention: statements on their status."""

from typing import Any, Final

from sqlalchemy import (
    Interval,
    Text,
    and_,
    any_,
    bindparam,
    case,
    cast,
    false,
    func,
    literal,
    not_,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from services.chassis.database import Statement
from services.registry import tables as t
from services.registry.store.credentials import (
    HAS_TOKEN,
    ITS_STATUS,
    OF_CURRENT,
    OF_STATUS,
    ONE,
    THE_ONE,
)

_C, _V, _S = t.credentials.c, t.credential_versions.c, t.credential_status.c
_NOW = func.clock_timestamp()

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
_OF_THE_ONE = and_(*THE_ONE, _S.tenant_id == _C.tenant_id, _S.credential_id == _C.credential_id)
_CURRENT_EXPIRY = select(_V.expires_at).where(OF_CURRENT).correlate(t.credentials).scalar_subquery()
_CURRENT_END = (
    select(_V.refresh_expires_at).where(OF_CURRENT).correlate(t.credentials).scalar_subquery()
)
_CURRENT_BEGIN = select(_V.created_at).where(OF_CURRENT).correlate(t.credentials).scalar_subquery()
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
_CURRENT_HAS_TOKEN = select(HAS_TOKEN).where(OF_CURRENT).correlate(t.credentials).scalar_subquery()
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
        .where(OF_CURRENT)
        .correlate(t.credentials)
        .scalar_subquery()
        .label("origin"),
    )
    .select_from(t.credentials.join(t.credential_status, OF_STATUS))
    .where(*ONE)
)
NOTICED: Final = Statement(
    update(t.credential_status)
    .where(*ITS_STATUS)
    .values(noticed=func.array_append(_S.noticed, bindparam("what", type_=Text)))
)
ROTATION_NOTICED: Final = Statement(
    update(t.credential_status).where(*ITS_STATUS).values(rotate_at=null())
)
WARNED: Final = Statement(update(t.credential_status).where(*ITS_STATUS).values(warn_at=null()))
