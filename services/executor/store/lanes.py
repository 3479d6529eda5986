"""The statements of the lanes engine; `services.executor.lanes` says in which order and why.

Level 1 is the tenant lane, level 2 the lanes of one tenant. Parameters: `tenant_id`, `lane_id`,
`lane_ids`, `work_id`, `claim_id`, `lease` and `delay` (timedelta), and limits named where they are
used. Times are the database's.
"""

from typing import Any

from sqlalchemy import (
    ARRAY,
    Integer,
    Interval,
    SmallInteger,
    String,
    Uuid,
    bindparam,
    case,
    delete,
    exists,
    extract,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.elements import ColumnElement

from services.chassis.database import Statement
from services.executor.tables import LANES, TENANT_LANES, WORK

NOW = func.now()
NEVER: ColumnElement[Any] = literal_column("'infinity'::timestamptz")
# How soon to look again where another worker is busy with a due tenant, in seconds.
SOON_S: ColumnElement[Any] = literal_column("0.05")

_TENANT_ID = bindparam("tenant_id", type_=Uuid)
_LANE_ID = bindparam("lane_id", type_=Uuid)
_CLAIM_ID = bindparam("claim_id", type_=Uuid)
_WORK_ID = bindparam("work_id", type_=Uuid)
_DUE = NOW + bindparam("delay", type_=Interval)
_LEASE_UNTIL = NOW + bindparam("lease", type_=Interval)

_THIS_TENANT = TENANT_LANES.c.tenant_id == _TENANT_ID
_THIS_LANE = (LANES.c.tenant_id == _TENANT_ID) & (LANES.c.lane_id == _LANE_ID)
_THESE_LANES = (LANES.c.tenant_id == _TENANT_ID) & (
    LANES.c.lane_id == func.any(bindparam("lane_ids", type_=ARRAY(Uuid)))
)
_CLAIMED_WORK = (
    (WORK.c.tenant_id == _TENANT_ID) & (WORK.c.work_id == _WORK_ID) & (WORK.c.claim_id == _CLAIM_ID)
)
_OF_THE_LANE = (WORK.c.tenant_id == _TENANT_ID) & (WORK.c.lane_id == LANES.c.lane_id)
_WAITING = _OF_THE_LANE & WORK.c.claim_id.is_(None)
_CLAIMED = _OF_THE_LANE & WORK.c.claim_id.is_not(None)


def _of_lane(what: Any, where: ColumnElement[bool]) -> Any:
    """A value over the work of the lane in the statement around it."""
    return select(what).where(where).correlate(LANES).scalar_subquery()


_NEXT_WAITING = _of_lane(func.min(WORK.c.due_at), _WAITING)
# A dead worker's claim must wake the lane again.
_NEXT_LEASE_END = _of_lane(func.min(WORK.c.lease_until), _CLAIMED)
_CLAIMS = _of_lane(func.count(), _CLAIMED)

ENSURE_TENANT_LANE = Statement(
    insert(TENANT_LANES).values(tenant_id=_TENANT_ID, next_at=_DUE).on_conflict_do_nothing()
)
ENSURE_LANE = Statement(
    insert(LANES)
    .values(
        tenant_id=_TENANT_ID,
        lane_id=_LANE_ID,
        kind=bindparam("kind", type_=String),
        next_at=_DUE,
        concurrency=bindparam("concurrency", type_=Integer),
    )
    .on_conflict_do_nothing()
)
INSERT_WORK = Statement(
    insert(WORK).values(
        tenant_id=_TENANT_ID,
        work_id=_WORK_ID,
        kind=bindparam("kind", type_=String),
        lane_id=_LANE_ID,
        target_id=bindparam("target_id", type_=Uuid),
        due_at=_DUE,
        priority=bindparam("priority", type_=SmallInteger),
        attempt=0,
    )
)
LOCK_LANE = Statement(select(LANES.c.lane_id).where(_THIS_LANE).with_for_update(key_share=True))
# Room for one more, and nothing that is due waits; an earlier statement has locked the lane.
_ROOM = (LANES.c.concurrency > _CLAIMS) & _of_lane(
    func.count() == 0, _WAITING & (WORK.c.due_at <= NOW)
)


def _take_work() -> Statement:
    """Insert work, claimed where its lane has room for it."""
    values: dict[str, Any] = {
        "tenant_id": _TENANT_ID,
        "work_id": _WORK_ID,
        "kind": bindparam("kind", type_=String),
        "lane_id": _LANE_ID,
        "target_id": bindparam("target_id", type_=Uuid),
        "due_at": NOW,
        "priority": bindparam("priority", type_=SmallInteger),
        "attempt": case((_ROOM, 1), else_=0),
        "claim_id": case((_ROOM, _CLAIM_ID)),
        "lease_until": case((_ROOM, _LEASE_UNTIL)),
    }
    taken = select(*values.values()).select_from(LANES).where(_THIS_LANE)
    return Statement(insert(WORK).from_select(list(values), taken).returning(WORK.c.claim_id))


TAKE_WORK = _take_work()
_THIS_WORK = (WORK.c.tenant_id == _TENANT_ID) & (WORK.c.work_id == _WORK_ID)
# When to look for work that was taken, or was not: at the end of its lease, or now.
_LOOK_AT = (
    select(func.coalesce(WORK.c.lease_until, WORK.c.due_at)).where(_THIS_WORK).scalar_subquery()
)
PULL_LANE_TO_WORK = Statement(
    update(LANES).where(_THIS_LANE, LANES.c.next_at > _LOOK_AT).values(next_at=_LOOK_AT)
)
PULL_TENANT_LANE_TO_WORK = Statement(
    update(TENANT_LANES)
    .where(_THIS_TENANT, TENANT_LANES.c.next_at > _LOOK_AT)
    .values(next_at=_LOOK_AT)
)
NOTIFY_UNLESS_TAKEN = Statement(
    select(func.pg_notify(bindparam("channel", type_=String), "")).where(
        _THIS_WORK, WORK.c.claim_id.is_(None)
    )
)
PULL_LANE = Statement(update(LANES).where(_THIS_LANE, LANES.c.next_at > _DUE).values(next_at=_DUE))
PULL_TENANT_LANE = Statement(
    update(TENANT_LANES).where(_THIS_TENANT, TENANT_LANES.c.next_at > _DUE).values(next_at=_DUE)
)

KEEP_TENANT_LANE = Statement(
    select(TENANT_LANES.c.tenant_id).where(_THIS_TENANT).with_for_update(read=True, key_share=True)
)
KEEP_LANE = Statement(
    select(LANES.c.lane_id).where(_THIS_LANE).with_for_update(read=True, key_share=True)
)
FINISH_WORK = Statement(delete(WORK).where(_CLAIMED_WORK).returning(WORK.c.work_id))
POSTPONE_WORK = Statement(
    update(WORK)
    .where(_CLAIMED_WORK)
    .values(claim_id=null(), lease_until=null(), due_at=_DUE)
    .returning(WORK.c.work_id)
)
WAKE_LANE = Statement(
    update(LANES)
    .where(_THIS_LANE, LANES.c.next_at > _NEXT_WAITING)
    .values(next_at=_NEXT_WAITING)
    .returning(LANES.c.lane_id)
)
WAKE_TENANT_LANE = Statement(
    update(TENANT_LANES)
    .where(_THIS_TENANT, _THIS_LANE, TENANT_LANES.c.next_at > LANES.c.next_at)
    .values(next_at=LANES.c.next_at)
    .returning(TENANT_LANES.c.tenant_id)
)
NOTIFY = Statement(select(func.pg_notify(bindparam("channel", type_=String), "")))
RENEW_WORK = Statement(
    update(WORK).where(_CLAIMED_WORK).values(lease_until=_LEASE_UNTIL).returning(WORK.c.work_id)
)

_DUE_TENANTS = (
    select(TENANT_LANES.c.tenant_id)
    .where(
        TENANT_LANES.c.next_at <= NOW,
        or_(TENANT_LANES.c.lease_until.is_(None), TENANT_LANES.c.lease_until <= NOW),
    )
    .order_by(TENANT_LANES.c.next_at)
    .limit(bindparam("tenants", type_=Integer))
    .with_for_update(key_share=True, skip_locked=True)
    .cte("due")
)
CLAIM_TENANTS = Statement(
    update(TENANT_LANES)
    .where(TENANT_LANES.c.tenant_id == _DUE_TENANTS.c.tenant_id)
    .values(claim_id=_CLAIM_ID, lease_until=_LEASE_UNTIL)
    .returning(TENANT_LANES.c.tenant_id)
)
_BUSY = exists().where(TENANT_LANES.c.next_at <= NOW, TENANT_LANES.c.lease_until > NOW)
_NEXT_TENANT = (
    select(func.min(TENANT_LANES.c.next_at))
    .where(TENANT_LANES.c.next_at > NOW, TENANT_LANES.c.next_at < NEVER)
    .scalar_subquery()
)
SECONDS_TO_NEXT = Statement(
    select(case((_BUSY, SOON_S), else_=extract("epoch", _NEXT_TENANT - NOW)).label("seconds"))
)

CHECK_TENANT_CLAIM = Statement(
    select(TENANT_LANES.c.tenant_id).where(
        _THIS_TENANT, TENANT_LANES.c.claim_id == _CLAIM_ID, TENANT_LANES.c.lease_until > NOW
    )
)
LOCK_DUE_LANES = Statement(
    select(LANES.c.lane_id)
    .where(
        LANES.c.tenant_id == _TENANT_ID,
        LANES.c.kind == func.any(bindparam("kinds", type_=ARRAY(String))),
        LANES.c.next_at <= NOW,
    )
    .order_by(LANES.c.next_at)
    .limit(bindparam("lanes", type_=Integer))
    .with_for_update(key_share=True, skip_locked=True)
)
_EXPIRED = (
    select(WORK.c.work_id)
    .where(
        WORK.c.tenant_id == _TENANT_ID,
        WORK.c.lane_id == func.any(bindparam("lane_ids", type_=ARRAY(Uuid))),
        WORK.c.claim_id.is_not(None),
        WORK.c.lease_until <= NOW,
    )
    .with_for_update(skip_locked=True)
    .cte("expired")
)
RELEASE_EXPIRED = Statement(
    update(WORK)
    .where(WORK.c.tenant_id == _TENANT_ID, WORK.c.work_id == _EXPIRED.c.work_id)
    .values(claim_id=null(), lease_until=null())
)
_FREE = func.greatest(
    0, func.least(bindparam("share", type_=Integer), LANES.c.concurrency - _CLAIMS)
)
_NEXT_OF_LANE = (
    select(WORK.c.work_id)
    .where(_WAITING, WORK.c.due_at <= NOW)
    .order_by(WORK.c.priority, WORK.c.due_at, WORK.c.work_id)
    .limit(_FREE)
    .with_for_update(skip_locked=True)
    .correlate(LANES)
    .lateral("next")
)
_PICKED = (
    select(_NEXT_OF_LANE.c.work_id)
    .select_from(LANES.join(_NEXT_OF_LANE, true()))
    .where(_THESE_LANES)
    .cte("picked")
)
CLAIM_WORK = Statement(
    update(WORK)
    .where(WORK.c.tenant_id == _TENANT_ID, WORK.c.work_id == _PICKED.c.work_id)
    .values(claim_id=_CLAIM_ID, lease_until=_LEASE_UNTIL, attempt=WORK.c.attempt + 1)
    .returning(WORK.c.work_id, WORK.c.kind, WORK.c.lane_id, WORK.c.target_id, WORK.c.attempt)
)

LOCK_LANES = Statement(
    select(LANES.c.lane_id).where(_THESE_LANES).with_for_update(skip_locked=True)
)
RAISE_LANES = Statement(
    update(LANES)
    .where(_THESE_LANES)
    .values(
        next_at=func.greatest(
            NOW,
            func.least(
                _NEXT_LEASE_END, case((LANES.c.concurrency > _CLAIMS, _NEXT_WAITING)), NEVER
            ),
        )
    )
)
TURN_LANES = Statement(update(LANES).where(_THESE_LANES, LANES.c.next_at < NOW).values(next_at=NOW))
LOCK_TENANT_LANE = Statement(
    select(TENANT_LANES.c.tenant_id).where(_THIS_TENANT).with_for_update(skip_locked=True)
)
_FREED = {"claim_id": null(), "lease_until": null()}
_ASLEEP = (TENANT_LANES.c.next_at > NOW).label("asleep")
_NEXT_LANE = (
    select(func.min(LANES.c.next_at)).where(LANES.c.tenant_id == _TENANT_ID).scalar_subquery()
)
RAISE_TENANT_LANE = Statement(
    update(TENANT_LANES)
    .where(_THIS_TENANT, TENANT_LANES.c.claim_id == _CLAIM_ID)
    .values(next_at=func.greatest(NOW, func.coalesce(_NEXT_LANE, NEVER)), **_FREED)
    .returning(_ASLEEP)
)
TURN_TENANT_LANE = Statement(
    update(TENANT_LANES)
    .where(_THIS_TENANT, TENANT_LANES.c.claim_id == _CLAIM_ID)
    .values(next_at=func.greatest(NOW, TENANT_LANES.c.next_at), **_FREED)
    .returning(_ASLEEP)
)
