"""What lanes and their tenant are governed by, read and changed; see
`services.executor.engine.governing`.

Parameters: `tenant_id`, `kinds`, `lane_ids`, and with them `owners`, one for each.
"""

from sqlalchemy import ARRAY, String, Uuid, and_, bindparam, func, select, update

from services.chassis.database import Statement
from services.executor.store.lanes import LIMITS, NOW, POLICY, TENANT_ID
from services.executor.tables import LANES, TENANT_LANES, WORK

_LANE_IDS = bindparam("lane_ids", type_=ARRAY(Uuid))
_WAITING = and_(
    WORK.c.tenant_id == TENANT_ID, WORK.c.lane_id == func.any(_LANE_IDS), WORK.c.claim_id.is_(None)
)

LIMITS_OF = Statement(
    select(*(TENANT_LANES.c[name] for name in LIMITS)).where(TENANT_LANES.c.tenant_id == TENANT_ID)
)
LANES_OF = Statement(
    select(LANES.c.lane_id, LANES.c.owner, *(LANES.c[name] for name in POLICY)).where(
        LANES.c.tenant_id == TENANT_ID,
        LANES.c.kind == func.any(bindparam("kinds", type_=ARRAY(String))),
    )
)


def _set_owners() -> Statement:
    lane = func.unnest(_LANE_IDS, bindparam("owners", type_=ARRAY(String))).table_valued(
        "id", "owner", name="lane"
    ).render_derived()  # fmt: skip
    this = and_(LANES.c.tenant_id == TENANT_ID, LANES.c.lane_id == lane.c.id)
    return Statement(update(LANES).where(this).values(owner=lane.c.owner))


SET_OWNERS = _set_owners()
# Whom somebody is busy with goes anyway, or keeps its time.
_LATER = (
    select(WORK.c.work_id).where(_WAITING, WORK.c.due_at > NOW).with_for_update(skip_locked=True)
)
HASTEN_WORK = Statement(
    update(WORK).where(WORK.c.tenant_id == TENANT_ID, WORK.c.work_id.in_(_LATER)).values(due_at=NOW)
)
COUNT_WAITING = Statement(
    select(WORK.c.lane_id, func.count().label("waiting")).where(_WAITING).group_by(WORK.c.lane_id)
)
