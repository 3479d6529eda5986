"""Key versions, who holds them, data keys, and what still has to be wrapped anew."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    Column,
    Integer,
    Interval,
    LargeBinary,
    Table,
    Text,
    Uuid,
    bindparam,
    cast,
    delete,
    func,
    insert,
    null,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.sql.elements import ColumnElement

from services.chassis.database import Statement
from services.registry import tables as t

CHANNEL: Final = "registry_keys"
"""Where it is told that a version has changed its state."""

_V, _H, _S, _D = t.key_versions.c, t.key_holders.c, t.sealing_keys.c, t.data_keys.c
_TENANT = bindparam("tenant_id", type_=_D.tenant_id.type)

VERSIONS: Final = Statement(select(t.key_versions).order_by(_V.version.desc()))
LOCK_VERSIONS: Final = Statement(
    select(t.key_versions).order_by(_V.version.desc()).with_for_update()
)
ADD_VERSION: Final = Statement(
    upsert(t.key_versions)
    .values(
        {
            name: bindparam(name, type_=_V[name].type)
            for name in ("version", "proof", "state", "provider", "reference", "wrapped")
        }
    )
    .on_conflict_do_nothing()
    .returning(_V.version)
)
SET_STATE: Final = Statement(
    update(t.key_versions)
    .where(_V.version == bindparam("the_version"))
    .values(state=bindparam("state"), changed_at=func.now())
)
# Without what the provider needs to open it, a destroyed version is gone here as well.
DESTROY: Final = Statement(
    update(t.key_versions)
    .where(_V.version == bindparam("the_version"))
    .values(state="destroyed", changed_at=func.now(), wrapped=b"", proof=b"")
)
COUNT_WRAPS: Final = Statement(
    update(t.key_versions)
    .where(_V.version == bindparam("the_version"))
    .values(wraps=_V.wraps + bindparam("more"))
)
# What is shredded needs no version any more, but still stands under one.
LEAVE_TO_ACTIVE: Final = Statement(
    update(t.data_keys)
    .where(_D.key_version == bindparam("the_version"), _D.state == "shredded")
    .values(key_version=select(_V.version).where(_V.state == "active").scalar_subquery())
)
TELL: Final = Statement(select(func.pg_notify(CHANNEL, "")))


def _age(name: str) -> Any:
    return func.now() - bindparam(name, type_=Interval)


HOLD: Final = Statement(
    upsert(t.key_holders)
    .values(
        holder_id=bindparam("holder_id", type_=_H.holder_id.type),
        host=bindparam("host"),
        versions=bindparam("versions", type_=_H.versions.type),
        seen_at=func.now(),
    )
    .on_conflict_do_update(
        index_elements=["holder_id"],
        set_={"versions": bindparam("versions", type_=_H.versions.type), "seen_at": func.now()},
    )
)
LET_GO: Final = Statement(
    delete(t.key_holders).where(_H.holder_id == bindparam("holder_id", type_=_H.holder_id.type))
)
FORGET_HOLDERS: Final = Statement(delete(t.key_holders).where(_H.seen_at < _age("gone")))
HOLDERS: Final = Statement(
    select(t.key_holders).where(_H.seen_at >= _age("gone")).order_by(_H.host, _H.holder_id)
)

SEALING_KEYS: Final = Statement(select(t.sealing_keys).order_by(_S.version.desc()))
ADD_SEALING_KEY: Final = Statement(
    upsert(t.sealing_keys)
    .values(
        {
            name: bindparam(name, type_=_S[name].type)
            for name in ("version", "public_key", "key_version", "wrapped")
        }
    )
    .on_conflict_do_nothing()
)

# A tenant's data keys, from inside the tenant.
_MINE = _D.tenant_id == _TENANT
DATA_KEY: Final = Statement(select(t.data_keys).where(_MINE, _D.state == "active"))
DATA_KEY_OF: Final = Statement(
    select(t.data_keys).where(
        _MINE, _D.data_key_id == bindparam("data_key_id", type_=_D.data_key_id.type)
    )
)
ADD_DATA_KEY: Final = Statement(
    insert(t.data_keys).values(
        {
            name: bindparam(name, type_=_D[name].type)
            for name in ("tenant_id", "data_key_id", "key_version", "wrapped")
        }
        | {"state": "active"}
    )
)
RETIRE: Final = Statement(
    update(t.data_keys)
    .where(_D.tenant_id == bindparam("the_tenant_id"), _D.state == "active")
    .values(state="retired", retired_at=func.now())
)
SHRED_DATA_KEY: Final = Statement(
    update(t.data_keys)
    .where(
        _D.tenant_id == bindparam("the_tenant_id"),
        _D.data_key_id == bindparam("the_data_key_id", type_=_D.data_key_id.type),
        _D.state == "retired",
    )
    .values(state="shredded", wrapped=null())
)
COUNT_SEALS: Final = Statement(
    update(t.data_keys)
    .where(
        _D.tenant_id == bindparam("the_tenant_id"),
        _D.data_key_id == bindparam("the_data_key_id", type_=_D.data_key_id.type),
    )
    .values(wraps=_D.wraps + bindparam("more"))
    .returning(_D.wraps, _D.state)
)

# From outside: what leaders look for.
RETIRED: Final = Statement(
    select(
        _D.tenant_id,
        _D.data_key_id,
        (_D.retired_at < _age("shredded_after")).label("has_had_its_time"),
        (_D.retired_at < _age("settled_after")).label("is_settled"),
    ).where(_D.state == "retired")
)


@dataclass(frozen=True, slots=True)
class Rewrapped:
    """One table of things that the key-encryption key wraps, as the system login rewraps it.

    `batch` takes some that an older version than `version` wraps, but for the first `skip`, `put`
    gives them back, and `left` counts those that remain.
    """

    table: Table
    batch: Statement
    put: Statement
    left: Statement
    by_version: Statement


def _rewrapped(table: Table, key: tuple[str, ...], value: str) -> Rewrapped:
    older = table.c.key_version < bindparam("version", type_=Integer)
    live = table.c[value].is_not(None)
    columns = (*key, "new_version", "old_version", "fresh")
    types = {"new_version": Integer, "old_version": Integer, "fresh": LargeBinary}
    arrays = [
        bindparam(name, type_=ARRAY(types.get(name) or _element(table.c[name]))) for name in columns
    ]
    item = func.unnest(*arrays).table_valued(*columns, name="item").render_derived()
    return Rewrapped(
        table,
        batch=Statement(
            select(table)
            .where(older, live)
            .limit(bindparam("size"))
            .offset(bindparam("skip"))
            .with_for_update(skip_locked=True)
        ),
        # Who wrapped it anew meanwhile has done the same.
        put=Statement(
            update(table)
            .where(
                *(table.c[name] == item.c[name] for name in key),
                table.c.key_version == item.c.old_version,
            )
            .values({"key_version": item.c.new_version, value: item.c.fresh})
        ),
        left=Statement(select(func.count().label("left")).select_from(table).where(older, live)),
        by_version=Statement(
            select(table.c.key_version, func.count().label("count"))
            .where(live)
            .group_by(table.c.key_version)
        ),
    )


def _element(column: Column[Any]) -> Any:
    return {"version": Integer, "method": Text}.get(column.name, Uuid)


DATA_KEYS: Final = _rewrapped(t.data_keys, ("tenant_id", "data_key_id"), "wrapped")
SEALING: Final = _rewrapped(t.sealing_keys, ("version",), "wrapped")
ANSWERS: Final = _rewrapped(
    t.request_answers, ("tenant_id", "principal_id", "method", "request_id"), "answer"
)
PLATFORM_ANSWERS: Final = _rewrapped(
    t.platform_answers, ("principal_id", "method", "request_id"), "answer"
)
WRAPPED_BY_VERSION: Final = (DATA_KEYS, SEALING, ANSWERS, PLATFORM_ANSWERS)


@dataclass(frozen=True, slots=True)
class OfDataKey:
    """One table of a tenant's things whose own keys its data key wraps, from inside the tenant.

    `kind` is what the audit log calls its rows; a batch has the `name` and the `object_id` of each.
    """

    kind: str
    batch: Statement
    put: Statement
    left: Statement


def _of_data_key(
    kind: str, id_: Column[UUID], live: ColumnElement[bool], *more: ColumnElement[Any]
) -> OfDataKey:
    """Of the table with that id; `live` is what its index by data keys says, `more` a batch has."""
    table, c = id_.table, id_.table.c
    old = (
        c.tenant_id == bindparam("tenant_id", type_=c.tenant_id.type),
        c.data_key_id == bindparam("data_key_id", type_=c.data_key_id.type),
        live,
    )
    ids, keys = bindparam("ids", type_=ARRAY(Uuid)), bindparam("keys", type_=ARRAY(LargeBinary))
    item = func.unnest(ids, keys).table_valued("id", "key", name="item").render_derived()
    return OfDataKey(
        kind,
        batch=Statement(
            select(id_.label("id"), c.wrapped_key, *more)
            .where(*old)
            .limit(bindparam("size"))
            .offset(bindparam("skip"))
            .with_for_update(skip_locked=True, of=table)
        ),
        put=Statement(
            update(table)
            .where(*old, id_ == item.c.id)
            .values(
                data_key_id=bindparam("new_data_key_id", type_=c.data_key_id.type),
                wrapped_key=item.c.key,
            )
        ),
        left=Statement(select(func.count().label("left")).select_from(table).where(*old)),
    )


def _called(id_: Column[UUID], name: ColumnElement[str] | None = None) -> tuple[Any, ...]:
    """What an object is called in the audit log: by its id, unless it has a name."""
    said = cast(id_, Text) if name is None else name
    return id_.label("object_id"), said.label("name")


_N, _R, _F = t.credential_versions.c, t.pending_revisions.c, t.oauth_flows.c
_NAME = (
    select(t.credentials.c.name)
    .where(
        t.credentials.c.tenant_id == _N.tenant_id,
        t.credentials.c.credential_id == _N.credential_id,
    )
    .scalar_subquery()
)
# A credential version's key is bound to its number besides its id.
CREDENTIAL_VERSIONS: Final = _of_data_key(
    *("Credential", _N.version_id, _N.shredded_at.is_(None)),
    *(_N.version, *_called(_N.credential_id, _NAME)),
)
PENDING_REVISIONS: Final = _of_data_key(
    "PendingRevision", _R.pending_id, _R.state == "pending", *_called(_R.pending_id)
)
OAUTH_FLOWS: Final = _of_data_key("OAuthFlow", _F.flow_id, true(), *_called(_F.flow_id))
WRAPPED_BY_DATA_KEY: Final = (CREDENTIAL_VERSIONS, PENDING_REVISIONS, OAUTH_FLOWS)

GONE: Final = timedelta(seconds=15)
"""A registry that has not said for so long which versions it has is taken to be gone."""
