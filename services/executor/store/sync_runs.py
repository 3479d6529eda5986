"""Transfers of streams, and how each stream stands: begun with work, moved on under its claim."""

from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    String,
    Uuid,
    and_,
    bindparam,
    case,
    func,
    null,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from services.chassis.database import Bound, Database, Statement
from services.executor.store.executions import bound
from services.executor.tables import SYNC_RUNS, SYNC_STATES

_R, _S = SYNC_RUNS.c, SYNC_STATES.c
THE_RUN: Final = and_(
    _R.tenant_id == bindparam("the_tenant_id", type_=Uuid),
    _R.id == bindparam("the_run_id", type_=Uuid),
)
_UNENDED = and_(THE_RUN, _R.ended_at.is_(None))
_THE_STREAM = and_(
    _S.tenant_id == bindparam("the_tenant_id", type_=Uuid),
    _S.stream_id == bindparam("the_stream_id", type_=Uuid),
)
_OF_A_LIST: Final = ("covered_by", "covered_at", "full_covered_by", "full_covered_at")
_NEW = ("tenant_id", "id", "stream_id", "stream", "state", "whole", "trigger_kind", "trigger_id")


@dataclass(frozen=True, slots=True)
class Run:
    """A transfer as its worker needs it; `whole`: it brings all, and not what has changed alone.

    `beginning` is of which of the stream's beginnings it is: what it reaches counts for that alone.
    """

    id: UUID
    whole: bool
    beginning: int
    pages: int
    seen: int
    data_key_id: UUID | None
    sealed_place: bytes | None = field(repr=False)
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class State:
    """How a stream stands: up to where it has come, and the newest transfers that ended well.

    `asked` is what its list was asked by. `sealed_by` is the key that all its records are sealed
    with, or a later one.
    """

    cursor: str = ""
    asked: bytes = b""
    beginning: int = 0
    data_key_id: UUID | None = None
    sealed_digest_key: bytes | None = field(default=None, repr=False)
    sealed_by: UUID | None = None
    covered_by: UUID | None = None
    covered_at: datetime | None = None
    full_covered_by: UUID | None = None
    full_covered_at: datetime | None = None

    @property
    def of_another_list(self) -> "State":
        """The same where what has come is of another list."""
        nothing: dict[str, Any] = dict.fromkeys(_OF_A_LIST)
        return replace(self, cursor="", **nothing)


@dataclass(frozen=True, slots=True)
class NewRun:
    """A transfer that is wanted."""

    tenant_id: UUID
    id: UUID
    stream_id: UUID
    stream: str
    whole: bool
    trigger_kind: str
    trigger_id: UUID


@dataclass(frozen=True, slots=True)
class Place:
    """A transfer, in its place."""

    tenant_id: UUID
    run_id: UUID
    stream_id: UUID

    @property
    def key(self) -> dict[str, UUID]:
        """The parameters that say so."""
        return {
            "the_tenant_id": self.tenant_id,
            "the_run_id": self.run_id,
            "the_stream_id": self.stream_id,
        }


ADD: Final = Statement(insert(SYNC_RUNS).values(bound(SYNC_RUNS, *_NEW)))
RUN: Final = Statement(select(*(_R[each.name] for each in fields(Run))).where(THE_RUN))
STATE: Final = Statement(select(*(_S[each.name] for each in fields(State))).where(_THE_STREAM))
_NEWEST = insert(SYNC_STATES).values(
    tenant_id=bindparam("the_tenant_id", type_=Uuid),
    stream_id=bindparam("the_stream_id", type_=Uuid),
    last_run_id=bindparam("the_run_id", type_=Uuid),
    **bound(SYNC_STATES, "asked", "data_key_id", "sealed_digest_key"),
)
_NOTHING: Final = {"cursor": "", **dict.fromkeys(_OF_A_LIST, null())}
"""How a stream stands of which nothing has come."""
KNOW: Final = Statement(
    _NEWEST.on_conflict_do_update(
        index_elements=[_S.tenant_id, _S.stream_id],
        set_={
            **{
                name: _NEWEST.excluded[name]
                for name in ("last_run_id", "asked", "data_key_id", "sealed_digest_key")
            },
            # What came of another list says nothing of this one.
            **{
                name: case((_S.asked != _NEWEST.excluded.asked, value), else_=_S[name])
                for name, value in _NOTHING.items()
            },
        },
    )
)
BEGIN: Final = Statement(
    update(SYNC_RUNS)
    .where(_UNENDED)
    .values(
        state="running",
        whole=bindparam("all_of_it", type_=Boolean),
        beginning=bindparam("of_beginning", type_=BigInteger),
        started_at=func.coalesce(_R.started_at, func.clock_timestamp()),
    )
)
STAND: Final = Statement(
    update(SYNC_RUNS).where(_UNENDED).values(bound(SYNC_RUNS, "data_key_id", "sealed_place"))
)
WAIT: Final = Statement(
    update(SYNC_RUNS)
    .where(_UNENDED)
    .values(
        state="retrying", failure_reason=bindparam("reason"), failure_message=bindparam("message")
    )
)
END: Final = Statement(
    update(SYNC_RUNS)
    .where(_UNENDED)
    .values(
        state=bindparam("new_state"),
        failure_reason=bindparam("reason"),
        failure_message=bindparam("message"),
        covered_by=bindparam("covered_by", type_=Uuid),
        sealed_place=null(),
        data_key_id=null(),
        ended_at=func.now(),
    )
)
_STARTED = select(_R.started_at).where(THE_RUN).correlate(None).scalar_subquery()
_WHOLE = bindparam("all_of_it", type_=Boolean)
_RUN_ID = bindparam("the_run_id", type_=Uuid)
# Who had the stream begin anew meanwhile wants more than this one has brought.
_COUNTS = _S.beginning == bindparam("of_beginning", type_=BigInteger)
_AS_WHOLE = and_(_COUNTS, _WHOLE)
SUCCEED: Final = Statement(
    update(SYNC_STATES)
    .where(_THE_STREAM)
    .values(
        cursor=case((_COUNTS, bindparam("reached", type_=String)), else_=_S.cursor),
        covered_by=case((_COUNTS, _RUN_ID), else_=_S.covered_by),
        covered_at=case((_COUNTS, _STARTED), else_=_S.covered_at),
        full_covered_by=case((_AS_WHOLE, _RUN_ID), else_=_S.full_covered_by),
        full_covered_at=case((_AS_WHOLE, _STARTED), else_=_S.full_covered_at),
        sealed_by=case((_AS_WHOLE, bindparam("data_key_id", type_=Uuid)), else_=_S.sealed_by),
        failures=0,
        last_success_at=func.now(),
    )
)
_SAID = select(_R.failure_reason).where(THE_RUN).correlate(None).scalar_subquery()
_FAILED = insert(SYNC_STATES).values(
    tenant_id=bindparam("the_tenant_id", type_=Uuid),
    stream_id=bindparam("the_stream_id", type_=Uuid),
    failures=1,
    last_failure_at=func.now(),
    last_failure_reason=_SAID,
)
FAIL: Final = Statement(
    _FAILED.on_conflict_do_update(
        index_elements=[_S.tenant_id, _S.stream_id],
        set_={
            "failures": _S.failures + 1,
            **{name: _FAILED.excluded[name] for name in ("last_failure_at", "last_failure_reason")},
        },
    )
)
RESET: Final = Statement(
    update(SYNC_STATES).where(_THE_STREAM).values(**_NOTHING, beginning=_S.beginning + 1)
)


def adding(new: NewRun) -> Bound:
    """What makes a transfer; its work goes with it."""
    words = {name: getattr(new, name) for name in _NEW if name != "state"}
    return Bound(ADD, {**words, "state": "queued"})


async def load(database: Database, place: Place) -> tuple[Run | None, State]:
    """A transfer, and how its stream stands."""
    reads = [Bound(RUN, place.key), Bound(STATE, place.key)]
    runs, states = await database.read_all(place.tenant_id, reads)
    return Run(*runs[0]) if runs else None, State(*states[0]) if states else State()


def beginning(
    place: Place, run: Run, asked: bytes, data_key_id: UUID, sealed_digest_key: bytes
) -> list[Bound]:
    """What says that a transfer has begun, what it asks by, and what digests are made by."""
    said = {"all_of_it": run.whole, "of_beginning": run.beginning}
    sealed = {"data_key_id": data_key_id, "sealed_digest_key": sealed_digest_key}
    know = Bound(KNOW, {**place.key, **sealed, "asked": asked})
    return [know, Bound(BEGIN, {**place.key, **said})]


def standing(place: Place, data_key_id: UUID, sealed_place: bytes) -> Bound:
    """What says where a transfer goes on."""
    return Bound(STAND, {**place.key, "data_key_id": data_key_id, "sealed_place": sealed_place})


def waiting(place: Place, reason: str, message: str) -> Bound:
    """What says why a transfer waits for its next try."""
    return Bound(WAIT, {**place.key, "reason": reason, "message": message})


def succeeding(place: Place, run: Run, reached: str, data_key_id: UUID) -> list[Bound]:
    """What ends a transfer that has brought all it should, up to where, and sealed it by a key."""
    said = {
        "all_of_it": run.whole,
        "of_beginning": run.beginning,
        "reached": reached,
        "data_key_id": data_key_id,
    }
    return [_ending(place, "success"), Bound(SUCCEED, {**place.key, **said})]


def covering(place: Place, covered_by: UUID) -> Bound:
    """What ends a transfer of which another one has brought all."""
    return _ending(place, "success", covered_by=covered_by)


def failing(place: Place, reason: str, message: str) -> list[Bound]:
    """What ends a transfer badly."""
    return [_ending(place, "failed", reason, message), Bound(FAIL, place.key)]


def cancelling(place: Place) -> Bound:
    """What ends a transfer that somebody wants no more."""
    return _ending(place, "cancelled", "CANCELLED", "it was cancelled")


def resetting(place: Place) -> Bound:
    """What has a stream begin anew."""
    return Bound(RESET, place.key)


def _ending(
    place: Place, state: str, reason: str = "", message: str = "", covered_by: UUID | None = None
) -> Bound:
    said = {"new_state": state, "reason": reason, "message": message, "covered_by": covered_by}
    return Bound(END, {**place.key, **said})
