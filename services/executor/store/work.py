"""The statements on rows of `work`; `services.executor.engine.lanes` says in which order and why.

Parameters are arrays over the items of one tenant, `works` being their ids; times are the
database's, delays and leases intervals.
"""

from typing import Any

from sqlalchemy import (
    ARRAY,
    Double,
    Integer,
    SmallInteger,
    String,
    Uuid,
    and_,
    bindparam,
    case,
    delete,
    exists,
    extract,
    func,
    literal,
    null,
    or_,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.elements import ColumnElement

from services.chassis.database import Statement
from services.executor.store.lanes import (
    CLAIM_ID,
    FREE,
    LANE_ID,
    LEASE_UNTIL,
    NOW,
    OF_THE_LANE,
    TENANT_ID,
    THESE_LANES,
    THIS_LANE,
    WAITING,
    seconds,
)
from services.executor.tables import LANES, TENANT_LANES, WORK

_MINE = WORK.c.tenant_id == TENANT_ID


def _array(name: str, kind: Any) -> Any:
    return bindparam(name, type_=ARRAY(kind))


def _items(**columns: Any) -> Any:
    """The arrays as rows, in their order."""
    arrays = [_array(name, kind) for name, kind in columns.items()]
    rows = func.unnest(*arrays).table_valued(*columns, with_ordinality="nth", name="item")
    return rows.render_derived()


_THESE_WORKS = and_(_MINE, WORK.c.work_id == func.any(_array("works", Uuid)))


def _key(given: Any) -> ColumnElement[Any]:
    """Within what an item goes in order, by its lane's ordering."""
    return case((LANES.c.ordering == "lane", ""), (LANES.c.ordering == "key", given))


def _held_back(lane_id: Any, key: Any) -> Any:
    """Whether something of the same key is before it."""
    same = and_(_MINE, WORK.c.lane_id == lane_id, WORK.c.key == key)
    return select(WORK.c.work_id).where(same).correlate_except(WORK).exists()


def _insert() -> Statement:
    """Inserts items; of those that must go in order, all but the first of a key are blocked."""
    item = _items(
        works=Uuid, kinds=String, lanes=Uuid, targets=Uuid, keys=String, delays=Double,
        deadlines=Double, priorities=SmallInteger,
    )  # fmt: skip
    key = _key(item.c["keys"])
    ahead = func.row_number().over(partition_by=(item.c.lanes, key), order_by=item.c.nth) > 1
    before = _held_back(item.c.lanes, key)
    values: dict[str, Any] = {
        "tenant_id": TENANT_ID,
        "work_id": item.c.works,
        "kind": item.c.kinds,
        "lane_id": item.c.lanes,
        "target_id": item.c.targets,
        "key": key,
        "blocked": and_(key.is_not(None), or_(ahead, before)),
        "due_at": NOW + seconds(item.c.delays),
        "deadline_at": NOW + seconds(item.c.deadlines),
        "priority": item.c.priorities,
        "attempt": literal(0, Integer),
    }
    lane = and_(LANES.c.tenant_id == TENANT_ID, LANES.c.lane_id == item.c.lanes)
    # Without its lane, an item is refused by the foreign key rather than left out.
    found = item.outerjoin(LANES, lane)
    rows = select(*values.values()).select_from(found).order_by(item.c.nth)
    return Statement(insert(WORK).from_select(list(values), rows))


INSERT = _insert()

# Room for one more, and nothing that is due waits; an earlier statement has locked the lane.
_TENANT_IS_FREE = exists().where(
    TENANT_LANES.c.tenant_id == TENANT_ID,
    TENANT_LANES.c.max_running.is_(None),
    TENANT_LANES.c.provider_caps == literal({}, TENANT_LANES.c.provider_caps.type),
    ~TENANT_LANES.c.paused,
)
_DUE_WAITS = select(WORK.c.work_id).where(WAITING, WORK.c.due_at <= NOW).correlate(LANES).exists()
_ROOM = and_(
    FREE > 0,
    LANES.c.ordering == "none",
    LANES.c.rate_per_s.is_(None),
    ~_DUE_WAITS,
    _TENANT_IS_FREE,
)


def _take() -> Statement:
    """Inserts one item, claimed where its lane has room for it."""
    key = _key(bindparam("key", type_=String))
    values: dict[str, Any] = {
        "tenant_id": TENANT_ID,
        "work_id": bindparam("work_id", type_=Uuid),
        "kind": bindparam("kind", type_=String),
        "lane_id": LANE_ID,
        "target_id": bindparam("target_id", type_=Uuid),
        "key": key,
        "blocked": and_(key.is_not(None), _held_back(LANE_ID, key)),
        "due_at": NOW,
        "deadline_at": NOW + seconds(bindparam("deadline_s", type_=Double)),
        "priority": bindparam("priority", type_=SmallInteger),
        "attempt": case((_ROOM, 1), else_=0),
        "claim_id": case((_ROOM, CLAIM_ID)),
        "lease_until": case((_ROOM, LEASE_UNTIL)),
    }
    asked = select(literal(1).label("one")).subquery("asked")
    row = select(*values.values()).select_from(asked.outerjoin(LANES, THIS_LANE))
    return Statement(insert(WORK).from_select(list(values), row).returning(WORK.c.claim_id))


TAKE = _take()

_EXPIRED = (
    select(WORK.c.work_id)
    .where(
        _MINE,
        WORK.c.lane_id == func.any(_array("lane_ids", Uuid)),
        WORK.c.claim_id.is_not(None),
        WORK.c.lease_until <= NOW,
    )
    .with_for_update(skip_locked=True)
    .cte("expired")
)
RELEASE_EXPIRED = Statement(
    update(WORK)
    .where(_MINE, WORK.c.work_id == _EXPIRED.c.work_id)
    .values(claim_id=null(), lease_until=null())
)

_NEXT_OF_LANE = (
    select(WORK.c.work_id)
    .where(WAITING, WORK.c.due_at <= NOW)
    .order_by(WORK.c.priority, WORK.c.due_at, WORK.c.work_id)
    .limit(func.greatest(0, func.least(bindparam("share", type_=Integer) * LANES.c.weight, FREE)))
    .with_for_update(skip_locked=True)
    .correlate(LANES)
    .lateral("next")
)
_CANDIDATES = select(
    _NEXT_OF_LANE.c.work_id, LANES.c.retry_s, LANES.c.provider
).select_from(LANES.join(_NEXT_OF_LANE, true())).where(THESE_LANES)  # fmt: skip


def _claim(picked: Any) -> Statement:
    picked = picked.cte("picked")
    left = extract("epoch", WORK.c.deadline_at - NOW)
    return Statement(
        update(WORK)
        .where(_MINE, WORK.c.work_id == picked.c.work_id)
        .values(claim_id=CLAIM_ID, lease_until=LEASE_UNTIL, attempt=WORK.c.attempt + 1)
        .returning(
            WORK.c.work_id,
            WORK.c.kind,
            WORK.c.lane_id,
            WORK.c.target_id,
            WORK.c.attempt,
            WORK.c.key,
            WORK.c.failures,
            WORK.c.cancelled,
            left.cast(Double).label("left_s"),
            extract("epoch", NOW - WORK.c.due_at).cast(Double).label("lag_s"),
            picked.c.retry_s,
        )
    )


CLAIM = _claim(_CANDIDATES)


def _capped() -> Any:
    """The candidates as far as the tenant's caps go: over all, and of each provider."""
    candidate = _CANDIDATES.cte("candidate")
    tenant = TENANT_LANES.c.tenant_id == TENANT_ID
    most = select(TENANT_LANES.c.max_running).where(tenant).scalar_subquery()
    caps = select(TENANT_LANES.c.provider_caps).where(tenant).scalar_subquery()
    running = select(func.count()).where(_MINE, WORK.c.claim_id.is_not(None)).scalar_subquery()
    of_provider = (
        select(func.count())
        .select_from(WORK.join(LANES, OF_THE_LANE))
        .where(_MINE, WORK.c.claim_id.is_not(None), LANES.c.provider == candidate.c.provider)
        .correlate(candidate)
        .scalar_subquery()
    )
    cap = caps[candidate.c.provider].astext.cast(Integer)
    placed = select(
        candidate,
        func.row_number().over().label("place"),
        func.row_number().over(partition_by=candidate.c.provider).label("place_of_provider"),
        cap.label("cap"),
        of_provider.label("of_provider"),
    ).cte("placed")
    return select(placed.c.work_id, placed.c.retry_s).where(
        placed.c.place + running <= func.coalesce(most, placed.c.place + running),
        or_(
            placed.c.cap.is_(None),
            placed.c.place_of_provider + placed.c.of_provider <= placed.c.cap,
        ),
    )


CLAIM_CAPPED = _claim(_capped())

HOLD = Statement(
    select(func.executor.hold_work(TENANT_ID, _array("works", Uuid), _array("claims", Uuid)))
)
RENEW = Statement(update(WORK).where(_THESE_WORKS).values(lease_until=LEASE_UNTIL))
RENEW_HELD = Statement(
    update(WORK)
    .where(
        _MINE,
        tuple_(WORK.c.work_id, WORK.c.claim_id).in_(
            select(*_items(works=Uuid, claims=Uuid).c["works", "claims"])
        ),
    )
    .values(lease_until=LEASE_UNTIL)
)
FINISH = Statement(delete(WORK).where(_THESE_WORKS))


def _postpone() -> Statement:
    item = _items(works=Uuid, delays=Double, failed=Integer)
    due_at = func.least(NOW + seconds(item.c.delays), WORK.c.deadline_at)
    return Statement(
        update(WORK)
        .where(_MINE, WORK.c.work_id == item.c.works)
        .values(
            claim_id=null(),
            lease_until=null(),
            # What is to be given up need not wait for its next try.
            due_at=case((WORK.c.cancelled, NOW), else_=due_at),
            failures=WORK.c.failures + item.c.failed,
        )
    )


POSTPONE = _postpone()


def _unblock() -> Statement:
    """Lets the next of each key go; the lanes are locked by an earlier statement."""
    item = _items(lanes=Uuid, keys=String)
    of_key = and_(_MINE, WORK.c.lane_id == item.c.lanes, WORK.c.key == item.c["keys"])
    first = select(WORK.c.work_id).where(of_key).order_by(WORK.c.place).limit(1).lateral("first")
    found = select(first.c.work_id).select_from(item.join(first, true()))
    return Statement(
        update(WORK).where(_MINE, WORK.c.work_id.in_(found), WORK.c.blocked).values(blocked=False)
    )


UNBLOCK = _unblock()

_OF_TARGET = and_(_MINE, WORK.c.target_id == bindparam("target_id", type_=Uuid))
LOCK_TARGET = Statement(
    select(WORK.c.work_id).where(_OF_TARGET).order_by(WORK.c.work_id).with_for_update()
)
CANCEL_WAITING = Statement(
    delete(WORK).where(_OF_TARGET, WORK.c.claim_id.is_(None)).returning(WORK.c.lane_id, WORK.c.key)
)
CANCEL_CLAIMED = Statement(
    update(WORK)
    .where(_OF_TARGET, WORK.c.claim_id.is_not(None))
    .values(cancelled=True)
    .returning(WORK.c.work_id)
)
