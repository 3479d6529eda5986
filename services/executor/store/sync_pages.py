"""Transfers, streams and records as people and services read them, page by page."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from itertools import chain, combinations
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Boolean, Integer, String, Uuid, and_, bindparam, func, or_, select

from services.chassis.database import Database, Statement, Transaction
from services.executor.tables import PROJECTED_OBJECTS as OBJECTS
from services.executor.tables import RECORDS, SYNC_RUNS, SYNC_STATES

ENDED: Final = frozenset({"success", "failed", "cancelled"})
FILTERS: Final = ("stream", "state")
LARGEST_PAGE: Final = 3 * 2**20
"""Bytes of records that are told together; a message may have 4 MiB where nobody says otherwise."""


@dataclass(frozen=True, slots=True)
class SyncRun:
    """A transfer as it stands; `stream` is the name of it, `integration/stream`."""

    id: UUID
    stream_id: UUID
    stream: str
    state: str
    whole: bool
    trigger_kind: str
    trigger_id: UUID
    pages: int
    seen: int
    created: int
    updated: int
    deleted: int
    failure_reason: str
    failure_message: str
    covered_by: UUID | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None

    @property
    def ended(self) -> bool:
        """Whether it has come to its end."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class StreamState:
    """A stream that is wanted, and how it stands; it has no times before its first transfer."""

    name: str
    spec: Mapping[str, Any] = field(repr=False)
    cursor: str | None
    last_run_id: UUID | None
    failures: int | None
    last_success_at: datetime | None
    last_failure_at: datetime | None
    last_failure_reason: str | None


@dataclass(frozen=True, slots=True)
class KeptRecord:
    """A record at rest; without data where it is gone."""

    key: str
    version: int
    data_key_id: UUID | None
    sealed_data: bytes | None = field(repr=False)
    changed_at: datetime
    deleted_at: datetime | None


_R, _S, _C = SYNC_RUNS.c, SYNC_STATES.c, RECORDS.c
_RUN = [_R[each.name] for each in fields(SyncRun)]
_MINE = _R.tenant_id == bindparam("tenant_id", type_=Uuid)


def _list(filters: tuple[str, ...]) -> Statement:
    """A page of the newest before an id, with one condition for each filter that is set."""
    conditions = [_R[name] == bindparam(name) for name in filters]
    found = select(*_RUN).where(_MINE, _R.id < bindparam("before", type_=Uuid), *conditions)
    return Statement(found.order_by(_R.id.desc()).limit(bindparam("limit", type_=Integer)))


LISTS: Final = {
    frozenset(filters): _list(filters)
    for filters in chain.from_iterable(combinations(FILTERS, n) for n in range(len(FILTERS) + 1))
}
GET: Final = Statement(select(*_RUN).where(_MINE, _R.id == bindparam("id", type_=Uuid)))
OF_EVENT: Final = Statement(
    select(_R.id)
    .where(
        _MINE,
        _R.trigger_id == bindparam("event_id", type_=Uuid),
        _R.trigger_kind == "event",
    )
    .order_by(_R.id)
)
_OF_STATE = [_S[each.name] for each in fields(StreamState)[2:]]
STREAMS: Final = Statement(
    select(OBJECTS.c.name, OBJECTS.c.spec, *_OF_STATE)
    .select_from(
        OBJECTS.outerjoin(
            SYNC_STATES,
            and_(_S.tenant_id == OBJECTS.c.tenant_id, _S.stream_id == OBJECTS.c.object_id),
        )
    )
    .where(
        OBJECTS.c.tenant_id == bindparam("tenant_id", type_=Uuid),
        OBJECTS.c.kind == "Stream",
        or_(
            bindparam("integration", type_=String) == "",
            OBJECTS.c.spec["integration"].astext == bindparam("integration", type_=String),
        ),
    )
    .order_by(OBJECTS.c.name)
)
_SOME = (
    select(
        *(_C[each.name] for each in fields(KeptRecord)),
        func.row_number().over(order_by=_C.key).label("number"),
        func.sum(func.octet_length(_C.sealed_data)).over(order_by=_C.key).label("bytes"),
    )
    .where(
        _C.tenant_id == bindparam("tenant_id", type_=Uuid),
        _C.stream_id == bindparam("stream_id", type_=Uuid),
        _C.key > bindparam("after", type_=String),
        or_(bindparam("gone", type_=Boolean), _C.deleted_at.is_(None)),
    )
    .order_by(_C.key)
    .limit(bindparam("limit", type_=Integer))
    .subquery("some")
)
PAGE: Final = Statement(
    select(*(_SOME.c[each.name] for each in fields(KeptRecord)))
    .where(or_(_SOME.c.number == 1, func.coalesce(_SOME.c.bytes, 0) <= LARGEST_PAGE))
    .order_by(_SOME.c.key)
)


async def page(
    database: Database, tenant_id: UUID, filters: Mapping[str, str], before: UUID, limit: int
) -> list[SyncRun]:
    """Transfers before an id; `filters` by the stream's name and by state."""
    statement = LISTS[frozenset(filters)]
    rows = await database.read(
        tenant_id, statement, tenant_id=tenant_id, before=before, limit=limit, **filters
    )
    return [SyncRun(*row) for row in rows]


async def get(source: Database | Transaction, tenant_id: UUID, run_id: UUID) -> SyncRun | None:
    """A transfer."""
    if isinstance(source, Database):
        rows = await source.read(tenant_id, GET, tenant_id=tenant_id, id=run_id)
    else:
        rows = await source.all(GET, tenant_id=tenant_id, id=run_id)
    return SyncRun(*rows[0]) if rows else None


async def streams(database: Database, tenant_id: UUID, integration: str = "") -> list[StreamState]:
    """A tenant's streams by name, or those of one integration."""
    rows = await database.read(tenant_id, STREAMS, tenant_id=tenant_id, integration=integration)
    return [StreamState(*row) for row in rows]


async def records(
    database: Database, tenant_id: UUID, stream_id: UUID, after: str, limit: int, *, gone: bool
) -> list[KeptRecord]:
    """Records behind a key, as many as fit; those that are gone as well, where that is asked."""
    asked = {"stream_id": stream_id, "after": after, "limit": limit, "gone": gone}
    rows = await database.read(tenant_id, PAGE, tenant_id=tenant_id, **asked)
    return [KeptRecord(*row) for row in rows]
