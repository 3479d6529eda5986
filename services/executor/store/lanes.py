"""The statements on tenant lanes and lanes; `engine.lanes` says in which order and why.

Level 1 is the tenant lane, level 2 the lanes of one tenant. Parameters: `tenant_id`, `lane_id`,
`lane_ids`, `claim_id`, `lease` (timedelta) and `delay` (timedelta), and what is named where it is
used. Times are the database's.
"""

from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Integer,
    Interval,
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
    literal_column,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.elements import ColumnElement

from services.chassis.database import Statement
from services.executor.tables import LANES, PROVIDER_SWITCHES, TENANT_LANES, WORK

NOW = func.now()
NEVER: Final[ColumnElement[Any]] = literal_column("'infinity'::timestamptz")
ALWAYS: Final[ColumnElement[Any]] = literal_column("'-infinity'::timestamptz")
# How soon to look again where another worker is busy with a due tenant, in seconds.
SOON_S: Final[ColumnElement[Any]] = literal_column("0.05")
# How soon to look again at a lane whose provider is switched off, in seconds.
OFF_S: Final[ColumnElement[Any]] = literal_column("10")

TENANT_ID = bindparam("tenant_id", type_=Uuid)
LANE_ID = bindparam("lane_id", type_=Uuid)
CLAIM_ID = bindparam("claim_id", type_=Uuid)
LEASE_UNTIL = NOW + bindparam("lease", type_=Interval)
_LANE_IDS = bindparam("lane_ids", type_=ARRAY(Uuid))
_DUE = NOW + bindparam("delay", type_=Interval)

THIS_TENANT = TENANT_LANES.c.tenant_id == TENANT_ID
MINE = LANES.c.tenant_id == TENANT_ID
THIS_LANE = and_(MINE, LANES.c.lane_id == LANE_ID)
THESE_LANES = and_(MINE, LANES.c.lane_id == func.any(_LANE_IDS))
OF_THE_LANE = and_(WORK.c.tenant_id == TENANT_ID, WORK.c.lane_id == LANES.c.lane_id)
WAITING = and_(OF_THE_LANE, WORK.c.claim_id.is_(None), ~WORK.c.blocked)
_CLAIMED = and_(OF_THE_LANE, WORK.c.claim_id.is_not(None))


def seconds(count: Any) -> Any:
    """So many seconds, which may be broken, as an interval."""
    return func.make_interval(0, 0, 0, 0, 0, 0, count)


def _of_lane(what: Any, where: ColumnElement[bool]) -> Any:
    """A value over the work of the lane in the statement around it."""
    return select(what).where(where).correlate(LANES).scalar_subquery()


_NEXT_WAITING = _of_lane(func.min(WORK.c.due_at), WAITING)
# A dead worker's claim must wake the lane again.
_NEXT_LEASE_END = _of_lane(func.min(WORK.c.lease_until), _CLAIMED)
_CLAIMS = _of_lane(func.count(), _CLAIMED)

# How many a lane may begin now, apart from its tenant's caps. Its rate is a generic cell rate: it
# has been used up to `rate_at`, and may be used `burst` items ahead.
_TOKENS = func.floor(
    LANES.c.burst
    - func.greatest(0, extract("epoch", LANES.c.rate_at - NOW)) * LANES.c.rate_per_s
    + literal_column("0.000001")
).cast(Integer)
_AT_ONCE = case(
    (
        LANES.c.breaker == "HALF_OPEN",
        func.least(LANES.c.breaker_probes, LANES.c.concurrency),
    ),
    else_=LANES.c.concurrency,
)
_ROOM = _AT_ONCE - _CLAIMS
_IS_OFF = (
    select(PROVIDER_SWITCHES.c.provider)
    .where(PROVIDER_SWITCHES.c.provider == LANES.c.provider)
    .correlate(LANES)
    .exists()
)
# What still waits for an owner that is gone only comes to its end, whatever the lane's state.
_GONE = LANES.c.owner == "gone"
_HELD = and_(~_GONE, or_(LANES.c.pause_reason != "", LANES.c.owner == "inactive"))
FREE: Final = case(
    (_GONE, _ROOM),
    (or_(_HELD, LANES.c.breaker == "OPEN", _IS_OFF), 0),
    else_=func.least(_ROOM, _TOKENS),
)
# Until when a lane may begin nothing, whatever waits.
_SHUT_UNTIL = func.greatest(
    case((LANES.c.breaker == "OPEN", LANES.c.open_until), else_=ALWAYS),
    case((_IS_OFF, NOW + seconds(OFF_S)), else_=ALWAYS),
    LANES.c.rate_at + seconds((1 - LANES.c.burst) / LANES.c.rate_per_s),
)
NEXT: Final = case(
    (_HELD, NEVER),
    else_=func.greatest(
        NOW,
        func.least(
            _NEXT_LEASE_END,
            case(
                (
                    and_(_ROOM > 0, _NEXT_WAITING.is_not(None)),
                    func.greatest(_NEXT_WAITING, case((_GONE, ALWAYS), else_=_SHUT_UNTIL)),
                )
            ),
            NEVER,
        ),
    ),
)

POLICY: Final = (
    *("provider", "weight", "concurrency", "ordering", "rate_per_s", "burst", "retry_s"),
    *("breaker_threshold", "breaker_reset_s", "breaker_probes", "breaker_trips_allowed"),
)
LIMITS: Final = ("paused", "weight", "max_running", "provider_caps", "work_per_hour")
_POLICY = {name: bindparam(name, type_=LANES.c[name].type) for name in POLICY}
_KIND = bindparam("kind", type_=String)
_NEW_LANE = insert(LANES).values(
    tenant_id=TENANT_ID, lane_id=LANE_ID, kind=_KIND, next_at=_DUE, **_POLICY
)

ENSURE_TENANT_LANE = Statement(
    insert(TENANT_LANES).values(tenant_id=TENANT_ID, next_at=_DUE).on_conflict_do_nothing()
)
ENSURE_LANE = Statement(_NEW_LANE.on_conflict_do_nothing())
SHAPE_LANE = Statement(
    _NEW_LANE.on_conflict_do_update(
        index_elements=[LANES.c.tenant_id, LANES.c.lane_id],
        set_={name: _NEW_LANE.excluded[name] for name in POLICY},
    )
)
# As everybody who waits for lanes: those that go in order first.
LOCK_CHANGING = Statement(
    select(LANES.c.lane_id)
    .where(THESE_LANES)
    .order_by(LANES.c.ordering == "none", LANES.c.lane_id)
    .with_for_update(key_share=True)
)
# What they now allow may have waited.
HASTEN_LANES = Statement(
    update(LANES).where(THESE_LANES, LANES.c.next_at > NOW).values(next_at=NOW)
)
GOVERN = Statement(
    update(TENANT_LANES)
    .where(THIS_TENANT)
    .values({name: bindparam(name, type_=TENANT_LANES.c[name].type) for name in LIMITS})
)


SPEND_QUOTA = Statement(
    select(func.executor.spend_quota(TENANT_ID, bindparam("count", type_=BigInteger)))
)
LOCK_LANE = Statement(select(LANES.c.lane_id).where(THIS_LANE).with_for_update(key_share=True))
# Who adds to an order or takes from it must see the other's work.
LOCK_ORDERED = Statement(
    select(LANES.c.lane_id)
    .where(THESE_LANES, LANES.c.ordering != "none")
    .order_by(LANES.c.lane_id)
    .with_for_update(key_share=True)
)
LOCK_ORDERED_OF_TARGET = Statement(
    select(LANES.c.lane_id)
    .where(
        MINE,
        LANES.c.ordering != "none",
        LANES.c.lane_id.in_(
            select(WORK.c.lane_id).where(
                WORK.c.tenant_id == TENANT_ID,
                WORK.c.target_id == bindparam("target_id", type_=Uuid),
            )
        ),
    )
    .order_by(LANES.c.lane_id)
    .with_for_update(key_share=True)
)
PULL_LANE = Statement(update(LANES).where(THIS_LANE, LANES.c.next_at > _DUE).values(next_at=_DUE))
PULL_TENANT_LANE = Statement(
    update(TENANT_LANES).where(THIS_TENANT, TENANT_LANES.c.next_at > _DUE).values(next_at=_DUE)
)
# When to look for work that was taken, or was not: at the end of its lease, or now.
_LOOK_AT = (
    select(func.coalesce(WORK.c.lease_until, WORK.c.due_at))
    .where(WORK.c.tenant_id == TENANT_ID, WORK.c.work_id == bindparam("work_id", type_=Uuid))
    .scalar_subquery()
)
PULL_LANE_TO_WORK = Statement(
    update(LANES).where(THIS_LANE, LANES.c.next_at > _LOOK_AT).values(next_at=_LOOK_AT)
)
PULL_TENANT_LANE_TO_WORK = Statement(
    update(TENANT_LANES)
    .where(THIS_TENANT, TENANT_LANES.c.next_at > _LOOK_AT)
    .values(next_at=_LOOK_AT)
)
NOTIFY = Statement(select(func.pg_notify(bindparam("channel", type_=String), "")))
NOTIFY_OF = Statement(
    select(func.pg_notify(bindparam("channel", type_=String), bindparam("payload", type_=String)))
)
NOTIFY_UNLESS_TAKEN = Statement(
    select(func.pg_notify(bindparam("channel", type_=String), "")).where(
        WORK.c.tenant_id == TENANT_ID,
        WORK.c.work_id == bindparam("work_id", type_=Uuid),
        WORK.c.claim_id.is_(None),
    )
)

KEEP_TENANT_LANE = Statement(
    select(TENANT_LANES.c.tenant_id).where(THIS_TENANT).with_for_update(read=True, key_share=True)
)
KEEP_LANES = Statement(
    select(LANES.c.lane_id).where(THESE_LANES).with_for_update(read=True, key_share=True)
)
WAKE_LANES = Statement(
    update(LANES)
    .where(THESE_LANES, LANES.c.next_at > _NEXT_WAITING)
    .values(next_at=_NEXT_WAITING)
    .returning(LANES.c.lane_id)
)
NEXT_LANE = select(func.min(LANES.c.next_at)).where(MINE).scalar_subquery()
WAKE_TENANT_LANE = Statement(
    update(TENANT_LANES)
    .where(THIS_TENANT, TENANT_LANES.c.next_at > NEXT_LANE)
    .values(next_at=NEXT_LANE)
    .returning(TENANT_LANES.c.tenant_id)
)

_DUE_TENANT = and_(TENANT_LANES.c.next_at <= NOW, ~TENANT_LANES.c.paused)
_DUE_TENANTS = (
    select(TENANT_LANES.c.tenant_id)
    .where(
        _DUE_TENANT,
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
    .values(claim_id=CLAIM_ID, lease_until=LEASE_UNTIL)
    .returning(TENANT_LANES.c.tenant_id, TENANT_LANES.c.weight)
)
_BUSY = exists().where(_DUE_TENANT, TENANT_LANES.c.lease_until > NOW)
_NEXT_TENANT = (
    select(func.min(TENANT_LANES.c.next_at))
    .where(TENANT_LANES.c.next_at > NOW, TENANT_LANES.c.next_at < NEVER, ~TENANT_LANES.c.paused)
    .scalar_subquery()
)
SECONDS_TO_NEXT = Statement(
    select(case((_BUSY, SOON_S), else_=extract("epoch", _NEXT_TENANT - NOW)).label("seconds"))
)
_CAPPED = or_(
    TENANT_LANES.c.max_running.is_not(None),
    TENANT_LANES.c.provider_caps != literal({}, TENANT_LANES.c.provider_caps.type),
)
CHECK_TENANT_CLAIM = Statement(
    select(_CAPPED.label("capped")).where(
        THIS_TENANT, TENANT_LANES.c.claim_id == CLAIM_ID, TENANT_LANES.c.lease_until > NOW
    )
)
LOCK_DUE_LANES = Statement(
    select(LANES.c.lane_id, LANES.c.breaker, LANES.c.rate_per_s)
    .where(
        MINE,
        LANES.c.kind == func.any(bindparam("kinds", type_=ARRAY(String))),
        LANES.c.next_at <= NOW,
    )
    .order_by(LANES.c.next_at)
    .limit(bindparam("lanes", type_=Integer))
    .with_for_update(key_share=True, skip_locked=True)
)
HALF_OPEN = Statement(
    update(LANES)
    .where(THESE_LANES, LANES.c.breaker == "OPEN", LANES.c.open_until <= NOW)
    .values(breaker="HALF_OPEN")
)
_BEGUN = _of_lane(func.count(), and_(OF_THE_LANE, WORK.c.claim_id == CLAIM_ID))
SPEND_RATE = Statement(
    update(LANES)
    .where(THESE_LANES, LANES.c.rate_per_s.is_not(None))
    .values(rate_at=func.greatest(LANES.c.rate_at, NOW) + seconds(_BEGUN / LANES.c.rate_per_s))
)


def _count() -> Statement:
    """Counts outcomes of one lane in a row: so many that failed, or 0 for those that worked.

    What ends while the breaker is OPEN was begun before, and counts no more.
    """
    failed = bindparam("failed", type_=Integer)
    closed, half = LANES.c.breaker == "CLOSED", LANES.c.breaker == "HALF_OPEN"
    in_a_row = case((failed == 0, 0), else_=LANES.c.failures + failed)
    opens = or_(
        and_(closed, in_a_row >= LANES.c.breaker_threshold),
        and_(half, failed > 0),
    )
    closes = and_(half, failed == 0)
    tells = or_(half, failed > 0, LANES.c.failures > 0)
    trips = case((opens, LANES.c.trips + 1), (closes, 0), else_=LANES.c.trips)
    disabled = and_(opens, LANES.c.trips + 1 >= LANES.c.breaker_trips_allowed)
    return Statement(
        update(LANES)
        .where(
            THIS_LANE,
            LANES.c.breaker_threshold.is_not(None),
            LANES.c.breaker != "OPEN",
            tells,
        )
        .values(
            breaker=case((opens, "OPEN"), (closes, "CLOSED"), else_=LANES.c.breaker),
            failures=case((or_(opens, closes), 0), else_=in_a_row),
            trips=trips,
            open_until=case(
                (opens, NOW + seconds(LANES.c.breaker_reset_s)), else_=LANES.c.open_until
            ),
            pause_reason=case(
                (and_(disabled, LANES.c.pause_reason == ""), bindparam("tripped", type_=String)),
                else_=LANES.c.pause_reason,
            ),
        )
        .returning(LANES.c.lane_id, LANES.c.breaker, LANES.c.trips, LANES.c.pause_reason)
    )


COUNT = _count()
SET_PAUSE = Statement(
    update(LANES).where(THIS_LANE).values(pause_reason=bindparam("reason", type_=String))
)
CLOSE_BREAKER = Statement(
    update(LANES)
    .where(THIS_LANE)
    .values(breaker="CLOSED", failures=0, trips=0, open_until=func.least(LANES.c.open_until, NOW))
)

LOCK_LANES = Statement(
    select(LANES.c.lane_id, LANES.c.owner).where(THESE_LANES).with_for_update(skip_locked=True)
)
DROP_LANES = Statement(
    delete(LANES).where(THESE_LANES, _GONE, ~exists().where(OF_THE_LANE).correlate(LANES))
)
RAISE_LANES = Statement(update(LANES).where(THESE_LANES).values(next_at=NEXT))
_IDLE = (
    select(LANES.c.lane_id)
    .where(THESE_LANES, LANES.c.next_at < NOW)
    .with_for_update(key_share=True, skip_locked=True)
)
TURN_LANES = Statement(update(LANES).where(MINE, LANES.c.lane_id.in_(_IDLE)).values(next_at=NOW))
LOCK_TENANT_LANE = Statement(
    select(TENANT_LANES.c.tenant_id).where(THIS_TENANT).with_for_update(skip_locked=True)
)
_FREED = {"claim_id": null(), "lease_until": null()}
_ASLEEP = (TENANT_LANES.c.next_at > NOW).label("asleep")
_TURN_OF = and_(THIS_TENANT, TENANT_LANES.c.claim_id == CLAIM_ID)
# A turn that found nothing it may run is not to be repeated at once.
_RESTED = NOW + bindparam("rest", type_=Interval)
RAISE_TENANT_LANE = Statement(
    update(TENANT_LANES)
    .where(_TURN_OF)
    .values(next_at=func.greatest(_RESTED, func.coalesce(NEXT_LANE, NEVER)), **_FREED)
    .returning(_ASLEEP)
)
TURN_TENANT_LANE = Statement(
    update(TENANT_LANES)
    .where(_TURN_OF)
    .values(next_at=func.greatest(_RESTED, TENANT_LANES.c.next_at), **_FREED)
    .returning(_ASLEEP)
)

SWITCH_OFF = Statement(
    insert(PROVIDER_SWITCHES)
    .values(provider=bindparam("provider"), reason=bindparam("reason"))
    .on_conflict_do_nothing()
)
SWITCH_ON = Statement(
    delete(PROVIDER_SWITCHES).where(PROVIDER_SWITCHES.c.provider == bindparam("provider"))
)
