"""The lanes engine: work is enqueued here, claimed by `turns`, and kept by the `recorder`.

A tenant has one row in `tenant_lanes` (level 1), each of its endpoints, connectors and streams one
in `lanes` (level 2), and whatever is to be done stands in `work`. `next_at` says when to look at a
row again. Workers look only at rows that are due, so one that is left asleep above waiting work
would strand it. Both levels follow the same protocol against that:

- *Lowering.* Who makes work due holds KEY SHARE on the lane and on the tenant lane until it
  commits: inserting gets both from the foreign keys of `work`, all else takes them first. Then, in
  new statements, it lowers `next_at` where that is later: first the lane's, then the tenant's.
- *Raising.* Only who holds FOR UPDATE, which KEY SHARE keeps out, puts a row to sleep, until what
  a statement begun after the lock finds. A statement that did both would look with a snapshot from
  before the lock, and miss what was committed in between.
- *Claiming* takes FOR NO KEY UPDATE, which lets enqueuers pass.

A worker locks with SKIP LOCKED everywhere: where somebody is busy, the row just stays due. The two
levels are put to sleep in transactions of their own, each holding locks of one level and waiting
for none; an enqueuer, which locks the lane before the tenant lane, can wait for them but they never
for it. A claim's transaction does not put to sleep either: enqueuers wait for its lock to lower a
lane, so that it must not wait for theirs. Turns of many tenants share transactions; since they wait
for nothing, they cannot wait for each other.

Work that goes in order is enqueued, finished and cancelled under the lane's lock, so that of each
key the first alone is not `blocked`. Who waits for locks takes them in one order: the lanes that go
in order, rows of work, other lanes, the tenant lane.

A lane whose owner is gone lets go whatever still waits, and goes itself once somebody who would
put it to sleep finds it empty. Who enqueues into it at that moment meets the foreign key, and is
told to try again.

Work that somebody waits for may skip the queue where there is none: it is inserted as claimed by
the process that runs it (`take`), under the lane's lock and by the same count.

Claims and sleep do not wait for the disk: a crash of PostgreSQL that loses them only makes a worker
claim again, and what a worker records under its claim takes the claim to the disk with it.
"""

from collections.abc import Sequence
from datetime import timedelta
from itertools import groupby
from operator import attrgetter
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Bound, Transaction
from services.chassis.database_errors import Constraints
from services.chassis.errors import Aborted, ResourceExhausted
from services.chassis.ids import uuid7
from services.executor.engine.work import Breaker, Claimed, ClaimLost, LanePolicy, Started, WorkItem
from services.executor.store import lanes as store
from services.executor.store import work as rows

CHANNEL: Final = "executor_work"
CANCEL_CHANNEL: Final = "executor_cancel"
NO_BREAKER: Final = Breaker(threshold=1, reset_s=1.0)


def _over_quota(hint: str) -> ResourceExhausted:
    limit, wait_s = hint.split()
    return ResourceExhausted(
        f"the tenant may begin {limit} pieces of work an hour, which are used up for {wait_s} s",
        reason="WORK_QUOTA_EXHAUSTED",
        metadata={"quota": "work_per_hour", "limit": limit},
        retry_after_s=float(wait_s),
    )


CONSTRAINTS: Final[Constraints] = {
    "work_lane_fkey": lambda _: Aborted("the lane has just gone with its owner; try again"),
    "work_claim_held": lambda _: ClaimLost(),
    "work_quota": _over_quota,
}


async def enqueue(
    tx: Transaction, tenant_id: UUID, items: Sequence[WorkItem], first: Sequence[Bound] = ()
) -> None:
    """Insert work, in the caller's transaction, and wake the workers once it commits.

    What is to stand `first`, the work's target say, goes in the same round trip. Raises
    ResourceExhausted where the tenant's quota does not hold so much.
    """
    if items:
        await tx.pipeline([*first, *enqueueing(tenant_id, items)])


async def begin(tx: Transaction, tenant_id: UUID, started: Sequence[Started]) -> None:
    """Insert several pieces of work with what they are about, as `enqueue` does.

    Of a transaction this is the only one: a second would want lanes while holding the tenant lane.
    """
    await tx.pipeline(beginning(tenant_id, started))


def beginning(tenant_id: UUID, started: Sequence[Started]) -> list[Bound]:
    """The statements of `begin`, for a batch."""
    if not started:
        return []
    first = [bound for each in started for bound in each.first]
    return [*first, *enqueueing(tenant_id, [each.item for each in started])]


def enqueueing(tenant_id: UUID, items: Sequence[WorkItem]) -> list[Bound]:
    """The statements of `enqueue`, for a batch."""
    # In one order for everybody, since what waits for each other's lanes must not do so crosswise.
    ordered = sorted(items, key=attrgetter("lane_id"))
    lanes = [_lane(tenant_id, list(of)) for _, of in groupby(ordered, attrgetter("lane_id"))]
    tenant = {"tenant_id": tenant_id, "delay": min(lane["delay"] for lane in lanes)}
    ids = [lane["lane_id"] for lane in lanes]
    return [
        Bound(store.ENSURE_TENANT_LANE, tenant),
        *(Bound(store.ENSURE_LANE, lane) for lane in lanes),
        Bound(store.LOCK_ORDERED, {"tenant_id": tenant_id, "lane_ids": ids}),
        Bound(rows.INSERT, _arrays(tenant_id, ordered)),
        *(Bound(store.PULL_LANE, lane) for lane in lanes),
        # It locks the tenant lane, which comes after the lanes.
        Bound(store.SPEND_QUOTA, {"tenant_id": tenant_id, "count": len(items)}),
        Bound(store.PULL_TENANT_LANE, tenant),
        Bound(store.NOTIFY, {"channel": CHANNEL}),
    ]


async def take(
    tx: Transaction, tenant_id: UUID, item: WorkItem, lease_s: float, first: Sequence[Bound] = ()
) -> Claimed | None:
    """Enqueue work that this process would run at once, because somebody waits for its end.

    It commits the caller's transaction. The work is claimed as it is inserted, where its lane has
    room and nothing due waits; the caller must run it then. None: it waits for its turn like any
    other. Room is counted under the lane's lock, as in a claim, and both lanes are due again when
    the lease ends.
    """
    claim_id, work_id = uuid7(), uuid7()
    lease = timedelta(seconds=lease_s)
    lane = {**_lane(tenant_id, [item]), "delay": lease}
    work = {
        "tenant_id": tenant_id,
        "work_id": work_id,
        "kind": item.kind,
        "lane_id": item.lane_id,
        "target_id": item.target_id,
        "key": item.key,
        "deadline_s": item.deadline_s,
        "priority": item.priority,
    }
    *_, inserted, _, _, _, _ = await tx.conclude(
        [
            *first,
            Bound(store.ENSURE_TENANT_LANE, lane),
            Bound(store.ENSURE_LANE, lane),
            Bound(store.LOCK_LANE, lane),
            Bound(rows.TAKE, {**work, "claim_id": claim_id, "lease": lease}),
            Bound(store.PULL_LANE_TO_WORK, work),
            Bound(store.SPEND_QUOTA, {"tenant_id": tenant_id, "count": 1}),
            Bound(store.PULL_TENANT_LANE_TO_WORK, work),
            Bound(store.NOTIFY_UNLESS_TAKEN, {**work, "channel": CHANNEL}),
        ]
    )
    if inserted[0].claim_id is None:
        return None
    return Claimed(
        tenant_id, work_id, item.kind, item.lane_id, item.target_id, 1, claim_id,
        left_s=item.deadline_s, retry_s=item.policy.retry_s,
    )  # fmt: skip


async def cancel(tx: Transaction, tenant_id: UUID, target_id: UUID) -> bool:
    """Cancel the work on a target; True: it waited and is gone, so the caller records its end.

    False: it runs, and its worker is told to end it once the transaction commits; or there is none.
    """
    key = {"tenant_id": tenant_id, "target_id": target_id}
    _, _, gone, running = await tx.pipeline(
        [
            Bound(store.LOCK_ORDERED_OF_TARGET, key),
            Bound(rows.LOCK_TARGET, key),
            Bound(rows.CANCEL_WAITING, key),
            Bound(rows.CANCEL_CLAIMED, key),
        ]
    )
    if gone:
        keyed = [(row.lane_id, row.key) for row in gone if row.key is not None]
        waking = leaving(tenant_id, [row.lane_id for row in gone], keyed)
        await tx.pipeline([*waking, Bound(store.NOTIFY, {"channel": CHANNEL})])
    for row in running:
        await tx.run(store.NOTIFY_OF, channel=CANCEL_CHANNEL, payload=str(row.work_id))
    return bool(gone)


def leaving(
    tenant_id: UUID, lane_ids: Sequence[UUID], keyed: Sequence[tuple[UUID, str]]
) -> list[Bound]:
    """The last statements after work has left lanes: whatever waited for that wakes them."""
    lanes = {"tenant_id": tenant_id, "lane_ids": sorted(set(lane_ids))}
    unblocking = {
        "tenant_id": tenant_id,
        "lanes": [lane_id for lane_id, _ in keyed],
        "keys": [key for _, key in keyed],
    }
    return [
        *([Bound(rows.UNBLOCK, unblocking)] if keyed else []),
        Bound(store.KEEP_TENANT_LANE, {"tenant_id": tenant_id}),
        Bound(store.KEEP_LANES, lanes),
        Bound(store.WAKE_LANES, lanes),
        Bound(store.WAKE_TENANT_LANE, {"tenant_id": tenant_id}),
    ]


def _lane(tenant_id: UUID, items: Sequence[WorkItem]) -> dict[str, Any]:
    """The parameters of one lane, from all the items for it."""
    return {
        "tenant_id": tenant_id,
        "lane_id": items[0].lane_id,
        "kind": items[0].kind,
        "delay": timedelta(seconds=min(item.delay_s for item in items)),
        **policy_row(items[0].policy),
    }


def policy_row(policy: LanePolicy) -> dict[str, Any]:
    """The columns of a policy."""
    breaker = policy.breaker or NO_BREAKER
    return {
        "provider": policy.provider,
        "weight": policy.weight,
        "concurrency": policy.concurrency,
        "ordering": policy.ordering,
        "rate_per_s": policy.rate_per_s,
        "burst": policy.burst,
        "retry_s": [float(each) for each in policy.retry_s],
        "breaker_threshold": policy.breaker.threshold if policy.breaker else None,
        "breaker_reset_s": breaker.reset_s,
        "breaker_probes": breaker.probes,
        "breaker_trips_allowed": breaker.trips_allowed,
    }


def _arrays(tenant_id: UUID, items: Sequence[WorkItem]) -> dict[str, Any]:
    """The parameters of all items' rows."""
    return {
        "tenant_id": tenant_id,
        "works": [uuid7() for _ in items],
        "kinds": [item.kind for item in items],
        "lanes": [item.lane_id for item in items],
        "targets": [item.target_id for item in items],
        "keys": [item.key for item in items],
        # An array takes no mixture of whole and broken numbers.
        "delays": [float(item.delay_s) for item in items],
        "deadlines": [
            None if item.deadline_s is None else float(item.deadline_s) for item in items
        ],
        "priorities": [item.priority for item in items],
    }
