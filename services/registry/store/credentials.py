"""Sealed versions of credentials, and the tenants' data keys that wrap their keys."""

from sqlalchemy import and_, bindparam, insert, select
from sqlalchemy.dialects.postgresql import insert as upsert

from services.chassis.database import Statement
from services.registry import tables as t

_C, _V, _K = t.credentials.c, t.credential_versions.c, t.data_keys.c

DATA_KEY = Statement(
    select(t.data_keys)
    .where(_K.tenant_id == bindparam("tenant_id"))
    .order_by(_K.created_at.desc())
    .limit(1)
)
ADD_DATA_KEY = Statement(
    insert(t.data_keys).values(
        {c.name: bindparam(c.name, type_=c.type) for c in _K if c.name != "created_at"}
    )
)
ADD_VERSION = Statement(
    insert(t.credential_versions).values(
        {c.name: bindparam(c.name, type_=c.type) for c in _V if c.name != "created_at"}
    )
)
_CURRENT = t.credentials.join(
    t.credential_versions,
    and_(
        _V.tenant_id == _C.tenant_id, _V.credential_id == _C.credential_id, _V.version == _C.version
    ),
)
_KEYED = _CURRENT.join(
    t.data_keys, and_(_K.tenant_id == _V.tenant_id, _K.data_key_id == _V.data_key_id)
)
RESOLVE = Statement(
    select(
        _C.credential_id,
        _C.type,
        _V.version,
        _V.version_id,
        _V.wrapped_key,
        _V.sealed,
        _K.data_key_id,
        _K.key_version,
        _K.wrapped,
    )
    .select_from(_KEYED)
    .where(_C.tenant_id == bindparam("tenant_id"), _C.name == bindparam("name"))
)
LIST = Statement(
    select(
        _C.credential_id,
        _C.name,
        _C.type,
        _C.description,
        _C.version,
        _C.created_at,
        _V.fingerprints,
        _V.created_at.label("rotated_at"),
    )
    .select_from(_CURRENT)
    .where(_C.tenant_id == bindparam("tenant_id"), _C.name > bindparam("after"))
    .order_by(_C.name)
    .limit(bindparam("size"))
)
_VERSIONS = t.key_versions.c
KEY_VERSION = Statement(select(_VERSIONS.proof).where(_VERSIONS.version == bindparam("version")))
ADD_KEY_VERSION = Statement(
    upsert(t.key_versions)
    .values(version=bindparam("version"), proof=bindparam("proof"))
    .on_conflict_do_nothing(index_elements=["version"])
)
