"""Connections as they are read: with the names they refer to, and how their credential stands."""

from typing import Any, Final

from sqlalchemy import Text, and_, bindparam, func, or_, select
from sqlalchemy.sql.elements import ColumnElement

from services.chassis.database import Statement
from services.registry import tables as t
from services.registry.store.credentials import STANDING

_N, _C, _S = t.connections.c, t.credentials.c, t.credential_status.c
_I, _V = t.integrations.c, t.venues.c
_MINE = _N.tenant_id == bindparam("tenant_id", type_=_N.tenant_id.type)

_SHOWN = select(
    t.connections,
    _I.name.label("ref_integration"),
    _C.name.label("ref_credential"),
    func.coalesce(_V.name, "").label("ref_venue"),
    STANDING,
    _S.reason,
).select_from(
    t.connections.join(
        t.integrations,
        and_(_I.tenant_id == _N.tenant_id, _I.integration_id == _N.integration_id),
    )
    .join(t.credentials, and_(_C.tenant_id == _N.tenant_id, _C.credential_id == _N.credential_id))
    .join(
        t.credential_status,
        and_(_S.tenant_id == _N.tenant_id, _S.credential_id == _N.credential_id),
    )
    .outerjoin(t.venues, and_(_V.tenant_id == _N.tenant_id, _V.venue_id == _N.venue_id))
)


def _if_said(name: str, column: Any) -> ColumnElement[bool]:
    """A filter that lets everything pass while its parameter is empty."""
    value = bindparam(name, type_=Text)
    return or_(value == "", func.coalesce(column, "") == value)


LIST: Final = Statement(
    _SHOWN.where(
        _MINE,
        _N.name > bindparam("after"),
        _if_said("integration", _I.name),
        _if_said("venue", _V.name),
        _if_said("of_user", _N.user),
    )
    .order_by(_N.name)
    .limit(bindparam("size"))
)
GET: Final = Statement(_SHOWN.where(_MINE, _N.name == bindparam("name")))
# The one of that name, or else of that account.
SAME: Final = Statement(
    _SHOWN.where(
        _MINE,
        or_(
            _N.name == bindparam("name", type_=Text),
            and_(
                _N.provider == bindparam("provider"),
                _N.app_id == bindparam("app_id", type_=_N.app_id.type),
                _N.external_account_id == bindparam("account"),
                bindparam("account", type_=Text) != "",
            ),
        ),
    )
    .order_by((_N.name == bindparam("name", type_=Text)).desc())
    .limit(1)
)
