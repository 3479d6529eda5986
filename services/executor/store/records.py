"""The records of streams: kept page by page with how far their transfer is, under its claim."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    Boolean,
    Integer,
    LargeBinary,
    Text,
    Uuid,
    and_,
    bindparam,
    case,
    func,
    literal,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from services.chassis.database import Bound, Database, Statement
from services.executor.store.sync_runs import THE_RUN, Place
from services.executor.tables import RECORDS, SYNC_RUNS

LOOKED_AT: Final = 20_000
"""Records that one statement looks at for those that are gone: a quarter of a second."""

_C, _R = RECORDS.c, SYNC_RUNS.c
_TENANT = bindparam("the_tenant_id", type_=Uuid)
_PASS = bindparam("pass_id", type_=Uuid)
_KEY_ID = bindparam("data_key_id", type_=Uuid)
_STREAM = bindparam("the_stream_id", type_=Uuid)


@dataclass(frozen=True, slots=True)
class Fresh:
    """A record as a page has it: its digest, and what it is, sealed."""

    key: str
    digest: bytes
    sealed_data: bytes = field(repr=False)


def _kept() -> CTE:
    """The records of a page, as they are kept: which of them changed, and their versions."""
    given = func.unnest(
        bindparam("keys", type_=ARRAY(Text)),
        bindparam("digests", type_=ARRAY(LargeBinary)),
        bindparam("data", type_=ARRAY(LargeBinary)),
    ).table_valued("key", "digest", "sealed_data", name="given").render_derived()  # fmt: skip
    columns = {
        "tenant_id": _TENANT,
        "stream_id": _STREAM,
        "key": given.c.key,
        "digest": given.c.digest,
        "data_key_id": _KEY_ID,
        "sealed_data": given.c.sealed_data,
        "version": literal(1, BigInteger),
        "seen_by": _PASS,
        "changed_at": func.now(),
    }
    new = insert(RECORDS).from_select(list(columns), select(*columns.values()))
    changed = or_(_C.digest != new.excluded.digest, _C.deleted_at.is_not(None))
    taken = ("digest", "data_key_id", "sealed_data", "seen_by")
    return (
        new.on_conflict_do_update(
            index_elements=[_C.tenant_id, _C.stream_id, _C.key],
            set_={
                **{name: new.excluded[name] for name in taken},
                "version": _C.version + case((changed, 1), else_=0),
                "changed_at": case((changed, new.excluded.changed_at), else_=_C.changed_at),
                "deleted_at": null(),
            },
            # Of a whole transfer it must be known what it has seen.
            where=or_(changed, bindparam("all_of_it", type_=Boolean)),
        )
        .returning(_C.version, (_C.changed_at == func.now()).label("changed"))
        .cte("kept")
    )


def _keep() -> Statement:
    """Keeps the records of a page, counts what they were to us, and says where the transfer is."""
    kept = _kept()

    def count(*which: Any) -> Any:
        return select(func.count()).select_from(kept).where(*which).scalar_subquery()

    return Statement(
        update(SYNC_RUNS)
        .where(THE_RUN, _R.ended_at.is_(None))
        .values(
            state="running",
            data_key_id=_KEY_ID,
            sealed_place=bindparam("place", type_=LargeBinary),
            pages=_R.pages + 1,
            seen=_R.seen + bindparam("count", type_=BigInteger),
            created=_R.created + count(kept.c.changed, kept.c.version == 1),
            updated=_R.updated + count(kept.c.changed, kept.c.version > 1),
            failure_reason="",
            failure_message="",
        )
        .returning(_R.seen, _R.pages)
    )


def _bury() -> Statement:
    """Marks as gone what a whole transfer has not seen, of some records; counts it."""
    of_stream = and_(_C.tenant_id == _TENANT, _C.stream_id == _STREAM)
    some = (
        select(_C.key)
        .where(of_stream, _C.key > bindparam("after", type_=Text))
        .order_by(_C.key)
        .limit(bindparam("most", type_=Integer))
        .cte("some")
    )
    gone = (
        update(RECORDS)
        .where(
            of_stream,
            _C.key.in_(select(some.c.key)),
            _C.deleted_at.is_(None),
            _C.seen_by != _PASS,
        )
        .values(
            digest=literal(b"", LargeBinary),
            data_key_id=null(),
            sealed_data=null(),
            version=_C.version + 1,
            changed_at=func.now(),
            deleted_at=func.now(),
        )
        .returning(_C.key)
        .cte("gone")
    )
    counted = select(func.count()).select_from(gone).scalar_subquery()
    return Statement(
        update(SYNC_RUNS)
        .where(THE_RUN, _R.ended_at.is_(None))
        .values(deleted=_R.deleted + counted)
        .returning(select(func.max(some.c.key)).scalar_subquery().label("last"))
    )


ANY: Final = Statement(
    select(literal(1))
    .where(_C.tenant_id == _TENANT, _C.stream_id == _STREAM, _C.deleted_at.is_(None))
    .limit(1)
)
KEEP: Final = _keep()
BURY: Final = _bury()


async def has_any(database: Database, place: Place) -> bool:
    """Whether a stream has a record that is not gone."""
    key = {name: place.key[name] for name in ("the_tenant_id", "the_stream_id")}
    return bool(await database.read(place.tenant_id, ANY, **key))


def keeping(
    place: Place, pass_id: UUID, records: Sequence[Fresh], *, whole: bool, seal: tuple[UUID, bytes]
) -> Bound:
    """What keeps a page's records, no key twice; `seal`: the key's id, and the transfer's place."""
    data_key_id, sealed_place = seal
    return Bound(
        KEEP,
        {
            **place.key,
            "pass_id": pass_id,
            "keys": [each.key for each in records],
            "digests": [each.digest for each in records],
            "data": [each.sealed_data for each in records],
            "data_key_id": data_key_id,
            "place": sealed_place,
            "count": len(records),
            "all_of_it": whole,
        },
    )


def burying(place: Place, pass_id: UUID, after: str) -> Bound:
    """What looks at records behind a key for those that a pass has not seen; answers to the `last`.

    That is null where there is none behind it.
    """
    return Bound(BURY, {**place.key, "pass_id": pass_id, "after": after, "most": LOOKED_AT})
