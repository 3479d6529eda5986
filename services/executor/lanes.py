"""The lanes engine: work is enqueued, claimed by turns, and finished or postponed.

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
lane, so that it must not wait for theirs.

Work that somebody waits for may skip the queue where there is none: it is inserted as claimed by
the process that runs it (`take`), under the lane's lock and by the same count.

Claims and sleep do not wait for the disk: a crash of PostgreSQL that loses them only makes a worker
claim again, and what a worker records under its claim takes the claim to the disk with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from operator import attrgetter
from typing import Any
from uuid import UUID

from services.chassis.database import Bound, Database, Transaction
from services.chassis.ids import uuid7
from services.executor.store import lanes as store

CHANNEL = "executor_work"
LEASE_S = 30.0
# A claimed tenant is looked at within milliseconds; this much a dead worker keeps it.
TENANT_LEASE_S = 5.0
LANES_A_TURN = 16


@dataclass(frozen=True, slots=True)
class WorkItem:
    """Something to do: what `kind` of work, in which lane, on which row.

    Of a lane, lower `priority` goes first, then what has been due longer. `concurrency` is how much
    of the lane may run at once; it counts when the lane is new.
    """

    kind: str
    lane_id: UUID
    target_id: UUID
    delay_s: float = 0
    priority: int = 0
    concurrency: int = 16


@dataclass(frozen=True, slots=True)
class Claimed:
    """Work that is ours until the lease runs out; `attempt` counts the claims, from 1."""

    tenant_id: UUID
    work_id: UUID
    kind: str
    lane_id: UUID
    target_id: UUID
    attempt: int
    claim_id: UUID


@dataclass(frozen=True, slots=True)
class Turn:
    """One tenant's turn with one worker."""

    tenant_id: UUID
    claim_id: UUID


@dataclass(frozen=True, slots=True)
class Look:
    """The turns won, and in how many seconds the next tenant is due (None: none is)."""

    turns: tuple[Turn, ...]
    next_s: float | None


@dataclass(frozen=True, slots=True)
class Taken:
    """The work taken in a turn, and the lanes looked at."""

    items: tuple[Claimed, ...] = ()
    lane_ids: tuple[UUID, ...] = ()


async def enqueue(
    tx: Transaction, tenant_id: UUID, items: Sequence[WorkItem], first: Sequence[Bound] = ()
) -> None:
    """Insert work, in the caller's transaction, and wake the workers once it commits.

    What is to stand `first`, the work's target say, goes in the same round trip.
    """
    if not items:
        return
    # In one order for everybody, since what waits for each other's lanes must not do so crosswise.
    ordered = sorted(items, key=attrgetter("lane_id"))
    lanes = [_first_due(list(group)) for _, group in groupby(ordered, key=attrgetter("lane_id"))]
    tenant = {"tenant_id": tenant_id, "delay": min(lane["delay"] for lane in lanes)}
    lanes = [{"tenant_id": tenant_id, **lane} for lane in lanes]
    await tx.pipeline(
        [
            *first,
            Bound(store.ENSURE_TENANT_LANE, tenant),
            *(Bound(store.ENSURE_LANE, lane) for lane in lanes),
            *(Bound(store.INSERT_WORK, _row(tenant_id, item)) for item in ordered),
            *(Bound(store.PULL_LANE, lane) for lane in lanes),
            Bound(store.PULL_TENANT_LANE, tenant),
            Bound(store.NOTIFY, {"channel": CHANNEL}),
        ]
    )


async def take(
    tx: Transaction, tenant_id: UUID, item: WorkItem, lease_s: float, first: Sequence[Bound] = ()
) -> Claimed | None:
    """Enqueue work that this process would run at once, because somebody waits for its end.

    It commits the caller's transaction. The work is claimed as it is inserted, where its lane has
    room and nothing due waits; the caller must run it then. None: it waits for its turn like any
    other. Room is counted under the lane's lock, as in a claim, and both lanes are due again when
    the lease ends.
    """
    claim_id, row = uuid7(), _row(tenant_id, item)
    lease = timedelta(seconds=lease_s)
    lane = {"tenant_id": tenant_id, **_first_due([item]), "delay": lease}
    *_, inserted, _, _, _ = await tx.conclude(
        [
            *first,
            Bound(store.ENSURE_TENANT_LANE, lane),
            Bound(store.ENSURE_LANE, lane),
            Bound(store.LOCK_LANE, lane),
            Bound(store.TAKE_WORK, {**row, "claim_id": claim_id, "lease": lease}),
            Bound(store.PULL_LANE_TO_WORK, row),
            Bound(store.PULL_TENANT_LANE_TO_WORK, row),
            Bound(store.NOTIFY_UNLESS_TAKEN, {**row, "channel": CHANNEL}),
        ]
    )
    if inserted[0].claim_id is None:
        return None
    return Claimed(tenant_id, row["work_id"], item.kind, item.lane_id, item.target_id, 1, claim_id)


async def complete(tx: Transaction, claimed: Claimed, first: Sequence[Bound] = ()) -> bool:
    """Delete finished work; False: the claim is lost, so record nothing of it.

    What is recorded of it goes `first`, in the same round trip.
    """
    return await _finish(tx, claimed, Bound(store.FINISH_WORK, _key(claimed)), first)


async def postpone(tx: Transaction, claimed: Claimed, delay_s: float) -> bool:
    """Give work back, due again in `delay_s` seconds; False: the claim is lost."""
    delay = {"delay": timedelta(seconds=delay_s)}
    return await _finish(tx, claimed, Bound(store.POSTPONE_WORK, {**_key(claimed), **delay}), ())


async def renew(tx: Transaction, claimed: Claimed, lease_s: float = LEASE_S) -> bool:
    """Prolong a claim to a lease from now; False: it is lost."""
    return bool((await tx.pipeline([renewing(claimed, lease_s)]))[0])


def renewing(claimed: Claimed, lease_s: float = LEASE_S) -> Bound:
    """Prolongs a claim to a lease from now; no row: it is lost.

    Nobody can claim the work anew before the transaction ends, so that what else it records is
    recorded under the claim.
    """
    return Bound(store.RENEW_WORK, {**_key(claimed), "lease": timedelta(seconds=lease_s)})


async def claim_tenants(database: Database, limit: int) -> Look:
    """Claim the tenants that have been due longest; at most `limit`."""
    claim_id = uuid7()
    lease = timedelta(seconds=TENANT_LEASE_S)
    async with database.system(durable=False) as tx:
        claimed, soonest = await tx.conclude(
            [
                Bound(
                    store.CLAIM_TENANTS, {"claim_id": claim_id, "tenants": limit, "lease": lease}
                ),
                Bound(store.SECONDS_TO_NEXT),
            ]
        )
    seconds = soonest[0].seconds
    return Look(
        tuple(Turn(row.tenant_id, claim_id) for row in claimed),
        None if seconds is None else float(seconds),
    )


async def claim_work(
    database: Database, turn: Turn, kinds: Sequence[str], share: int, lease_s: float
) -> Taken:
    """Claim at most `share` due items of one tenant, from the lanes that have been due longest.

    The lanes are locked before a new statement counts what already runs in them: counted with an
    older snapshot, two workers could fill one lane twice.
    """
    key = {"tenant_id": turn.tenant_id, "claim_id": turn.claim_id}
    limits = {"kinds": list(kinds), "lanes": min(share, LANES_A_TURN)}
    async with database.tenant(turn.tenant_id, durable=False) as tx:
        held, lanes = await tx.pipeline(
            [
                Bound(store.CHECK_TENANT_CLAIM, key),
                Bound(store.LOCK_DUE_LANES, {"tenant_id": turn.tenant_id, **limits}),
            ]
        )
        if not held or not lanes:
            return Taken()
        lane_ids = [row.lane_id for row in lanes]
        each = {"share": max(1, share // len(lane_ids)), "lease": timedelta(seconds=lease_s)}
        _, rows = await tx.conclude(
            [
                Bound(store.RELEASE_EXPIRED, {"tenant_id": turn.tenant_id, "lane_ids": lane_ids}),
                Bound(store.CLAIM_WORK, {**key, **each, "lane_ids": lane_ids}),
            ]
        )
    items = (
        Claimed(
            tenant_id=turn.tenant_id,
            work_id=row.work_id,
            kind=row.kind,
            lane_id=row.lane_id,
            target_id=row.target_id,
            attempt=row.attempt,
            claim_id=turn.claim_id,
        )
        for row in rows
    )
    return Taken(tuple(items), tuple(lane_ids))


async def settle(database: Database, turn: Turn, lane_ids: Sequence[UUID]) -> bool:
    """End a turn: what has no more due work sleeps, the rest goes to the end of its line.

    Answers whether the tenant sleeps.
    """
    if lane_ids:
        async with database.tenant(turn.tenant_id, durable=False) as tx:
            await settle_lanes(tx, turn.tenant_id, lane_ids)
    async with database.tenant(turn.tenant_id, durable=False) as tx:
        return await settle_tenant(tx, turn)


async def settle_lanes(tx: Transaction, tenant_id: UUID, lane_ids: Sequence[UUID]) -> None:
    """Put the lanes to sleep that nobody is busy with; a transaction of its own."""
    rows = await tx.all(store.LOCK_LANES, tenant_id=tenant_id, lane_ids=list(lane_ids))
    locked = [row.lane_id for row in rows]
    busy = [lane_id for lane_id in lane_ids if lane_id not in locked]
    if locked:
        await tx.run(store.RAISE_LANES, tenant_id=tenant_id, lane_ids=locked)
    if busy:
        await tx.run(store.TURN_LANES, tenant_id=tenant_id, lane_ids=busy)


async def settle_tenant(tx: Transaction, turn: Turn) -> bool:
    """Release the tenant lane; asleep (True) if nobody is busy with it and nothing is due.

    In a transaction of its own.
    """
    key = {"tenant_id": turn.tenant_id}
    locked = await tx.one(store.LOCK_TENANT_LANE, **key)
    end = store.RAISE_TENANT_LANE if locked else store.TURN_TENANT_LANE
    row = await tx.one(end, **key, claim_id=turn.claim_id)
    return row is not None and row.asleep


async def _finish(
    tx: Transaction, claimed: Claimed, finishing: Bound, first: Sequence[Bound]
) -> bool:
    """End a claim; its lane may have been full, so whatever waits there wakes it."""
    lane = {"tenant_id": claimed.tenant_id, "lane_id": claimed.lane_id}
    *_, finished, lane_woken, tenant_woken = await tx.pipeline(
        [
            *first,
            Bound(store.KEEP_TENANT_LANE, {"tenant_id": claimed.tenant_id}),
            Bound(store.KEEP_LANE, lane),
            finishing,
            Bound(store.WAKE_LANE, lane),
            Bound(store.WAKE_TENANT_LANE, lane),
        ]
    )
    if lane_woken or tenant_woken:
        await tx.run(store.NOTIFY, channel=CHANNEL)
    return bool(finished)


def _first_due(items: Sequence[WorkItem]) -> dict[str, Any]:
    """The parameters of one lane, from all the items for it."""
    return {
        "lane_id": items[0].lane_id,
        "kind": items[0].kind,
        "concurrency": items[0].concurrency,
        "delay": timedelta(seconds=min(item.delay_s for item in items)),
    }


def _row(tenant_id: UUID, item: WorkItem) -> dict[str, Any]:
    """The parameters of one item's row."""
    return {
        "tenant_id": tenant_id,
        "work_id": uuid7(),
        "kind": item.kind,
        "lane_id": item.lane_id,
        "target_id": item.target_id,
        "delay": timedelta(seconds=item.delay_s),
        "priority": item.priority,
    }


def _key(claimed: Claimed) -> dict[str, Any]:
    """The work and the claim that must still hold it."""
    return {
        "tenant_id": claimed.tenant_id,
        "work_id": claimed.work_id,
        "claim_id": claimed.claim_id,
    }
