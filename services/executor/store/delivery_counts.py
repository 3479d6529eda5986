"""How the deliveries to endpoints went lately, counted as far as a look at them stays quick.

What a tenant has made lately is read once, by its key, for `MOST_COUNTED` rows at most; they lie
side by side. By endpoint only few deliveries are read, with their tries. So nothing is kept up to
date for it where deliveries are made and tried.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ARRAY, String, Uuid, and_, bindparam, func, or_, select, true, union

from services.chassis.database import Database, Statement
from services.executor.store.lanes import seconds
from services.executor.tables import DELIVERIES
from services.executor.tables import DELIVERY_ATTEMPTS as ATTEMPTS

MOST_COUNTED: Final = 100_000
MOST_TRIED: Final = 50
"""Of the newest, and of the oldest: behind a backlog it is those that were tried."""
STATES: Final = ("queued", "sending", "retrying", "success", "failed", "dead")

Place = tuple[UUID, str]
"""An endpoint's id and its name."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Deliveries of one endpoint by state, and how their tries went; None where there was none."""

    queued: int
    sending: int
    retrying: int
    success: int
    failed: int
    dead: int
    last_success_at: datetime | None
    last_failure_at: datetime | None
    last_failure_reason: str | None
    p50_ms: float | None
    p95_ms: float | None


_D, _A = DELIVERIES.c, ATTEMPTS.c
_TENANT_ID = bindparam("tenant_id", type_=Uuid)
_SINCE = bindparam("since", type_=Uuid)
_LATELY = (_D.tenant_id == _TENANT_ID, _D.id >= _SINCE)


def _by_endpoint() -> Any:
    """Counts, when one was last taken, and which of those that failed at a try is the newest."""
    shown = (_D.id, _D.endpoint_id, _D.state, _D.attempts, _D.failure_reason, _D.ended_at)
    newest = select(*shown).where(*_LATELY).order_by(_D.id.desc()).limit(MOST_COUNTED).cte("newest")
    of = newest.c
    failed = or_(of.attempts > 1, and_(of.attempts == 1, of.failure_reason != ""))
    return (
        select(
            of.endpoint_id,
            *(func.count().filter(of.state == state).label(state) for state in STATES),
            func.max(of.ended_at).filter(of.state == "success").label("last_success_at"),
            # Of uuids there is no greatest before PostgreSQL 18; as text they have the same order.
            func.max(of.id.cast(String)).filter(failed).cast(Uuid).label("failed_id"),
        )
        .group_by(of.endpoint_id)
        .cte("by_endpoint")
    )


def _durations(place: Any) -> Any:
    """What the tries of an endpoint's newest and oldest took."""
    by_name = select(_D.id, _D.endpoint_id).where(*_LATELY, _D.endpoint == place.c.endpoint)
    made = by_name.limit(MOST_TRIED).correlate(place)
    ends = [made.order_by(order).subquery() for order in (_D.id.desc(), _D.id)]
    # An endpoint that had the name before is another one. Asked for above, it would be one
    # condition more, of which the planner makes so few rows that it reads and sorts all.
    mine = [
        select(each.c.id).where(each.c.endpoint_id == place.c.endpoint_id).correlate(place)
        for each in ends
    ]
    these = union(*mine).subquery("these")
    took = _A.duration_ms
    return (
        select(
            func.percentile_cont(0.5).within_group(took).label("p50_ms"),
            func.percentile_cont(0.95).within_group(took).label("p95_ms"),
        )
        .select_from(ATTEMPTS.join(these, _A.delivery_id == these.c.id))
        # The second says which months to look into.
        .where(_A.tenant_id == _TENANT_ID, _A.delivery_id >= _SINCE)
        .lateral("durations")
    )


def _last_failure(delivery_id: Any) -> Any:
    """The last try of a delivery that failed."""
    ended_at = _A.started_at + seconds(_A.duration_ms / 1000.0)
    return (
        select(ended_at.label("last_failure_at"), _A.failure_reason.label("last_failure_reason"))
        .where(_A.tenant_id == _TENANT_ID, _A.delivery_id == delivery_id, _A.failure_reason != "")
        .order_by(_A.number.desc())
        .limit(1)
        .lateral("last_failure")
    )


def _counts() -> Statement:
    """A row for each endpoint, in their order, with every column of Counts."""
    arrays = [bindparam("ids", type_=ARRAY(Uuid)), bindparam("names", type_=ARRAY(String))]
    columns = ("endpoint_id", "endpoint")
    place = func.unnest(*arrays).table_valued(*columns, with_ordinality="nth", name="place")
    place = place.render_derived()
    counted = _by_endpoint()
    durations, failure = _durations(place), _last_failure(counted.c.failed_id)
    found = {
        **{state: func.coalesce(counted.c[state], 0).label(state) for state in STATES},
        "last_success_at": counted.c.last_success_at,
        **{each.name: each for each in (*failure.c, *durations.c)},
    }
    table = (
        place.outerjoin(counted, counted.c.endpoint_id == place.c.endpoint_id)
        .outerjoin(durations, true())
        .outerjoin(failure, true())
    )
    shown = [found[each.name] for each in fields(Counts)]
    return Statement(select(*shown).select_from(table).order_by(place.c.nth))


COUNTS: Final = _counts()


async def counts(
    database: Database, tenant_id: UUID, places: Sequence[Place], since: UUID
) -> list[Counts]:
    """What was made for each endpoint from an id on, in their order."""
    if not places:
        return []
    ids, names = zip(*places, strict=True)
    rows = await database.read(
        tenant_id, COUNTS, tenant_id=tenant_id, ids=list(ids), names=list(names), since=since
    )
    return [Counts(*row) for row in rows]
