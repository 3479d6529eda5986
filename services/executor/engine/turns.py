"""Turns of workers: due tenants are claimed, then their due lanes and work, then all is settled.

`services.executor.engine.lanes` says which locks, in which order, and why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from operator import attrgetter
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Bound, Database, Statement, Transaction
from services.chassis.ids import uuid7
from services.executor.engine.work import Claimed, Rows
from services.executor.store import lanes as store
from services.executor.store import work as rows

# A claimed tenant is looked at within milliseconds; this much a dead worker keeps it.
TENANT_LEASE_S: Final = 5.0
LANES_A_TURN: Final = 16
REST_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Turn:
    """One tenant's turn with one worker."""

    tenant_id: UUID
    claim_id: UUID
    weight: int = 1


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


async def claim_tenants(database: Database, limit: int) -> Look:
    """Claim the tenants that have been due longest; at most `limit`."""
    claim_id = uuid7()
    lease = timedelta(seconds=TENANT_LEASE_S)
    claim = {"claim_id": claim_id, "tenants": limit, "lease": lease}
    async with database.system(durable=False) as tx:
        claimed, soonest = await tx.conclude(
            [Bound(store.CLAIM_TENANTS, claim), Bound(store.SECONDS_TO_NEXT)]
        )
    seconds = soonest[0].seconds
    return Look(
        tuple(Turn(row.tenant_id, claim_id, row.weight) for row in claimed),
        None if seconds is None else float(seconds),
    )


async def claim_work(
    database: Database, shares: Mapping[Turn, int], kinds: Sequence[str], lease_s: float
) -> dict[Turn, Taken]:
    """Claim each turn's share of due items, from the lanes that have been due longest.

    The lanes are locked before a new statement counts what already runs in them: counted with an
    older snapshot, two workers could fill one lane twice.
    """
    looks = {turn.tenant_id: _looking(turn, kinds, share) for turn, share in shares.items()}
    async with database.across(durable=False) as tx:
        found = await tx.each(looks)
        claims = {
            turn.tenant_id: _claiming(turn, found[turn.tenant_id], share, lease_s)
            for turn, share in shares.items()
            if all(found[turn.tenant_id])
        }
        claimed = await tx.each(claims, last=True) if claims else {}
    return {
        turn: _taken(turn, found[turn.tenant_id][1], claimed[turn.tenant_id])
        if turn.tenant_id in claimed
        else Taken()
        for turn in shares
    }


async def settle(database: Database, turns: Mapping[Turn, Taken]) -> bool:
    """End turns: what has no more due work sleeps, the rest goes to the end of its line.

    Answers whether any of the tenants sleeps.
    """
    looked = {turn.tenant_id: taken.lane_ids for turn, taken in turns.items() if taken.lane_ids}
    if looked:
        async with database.across(durable=False) as tx:
            await settle_lanes(tx, looked)
    async with database.across(durable=False) as tx:
        busy, asleep = await settle_tenants(tx, turns)
    if busy:
        async with database.across(durable=False) as tx:
            asleep |= await turn_tenants(tx, busy)
    return asleep


async def settle_lanes(tx: Transaction, looked: Mapping[UUID, Sequence[UUID]]) -> None:
    """Put the lanes to sleep that nobody is busy with; a transaction of its own."""
    locking = {
        tenant_id: [Bound(store.LOCK_LANES, {"tenant_id": tenant_id, "lane_ids": list(lane_ids)})]
        for tenant_id, lane_ids in looked.items()
    }
    locked = await tx.each(locking)
    ends = {}
    for tenant_id, lane_ids in looked.items():
        held = [row.lane_id for row in locked[tenant_id][0]]
        gone = [row.lane_id for row in locked[tenant_id][0] if row.owner == "gone"]
        busy = [lane_id for lane_id in lane_ids if lane_id not in held]
        ends[tenant_id] = [
            Bound(statement, {"tenant_id": tenant_id, "lane_ids": ids})
            for statement, ids in (
                (store.DROP_LANES, gone),
                (store.RAISE_LANES, held),
                (store.TURN_LANES, busy),
            )
            if ids
        ]
    await tx.each(ends)


async def settle_tenants(
    tx: Transaction, turns: Mapping[Turn, Taken]
) -> tuple[dict[Turn, Taken], bool]:
    """Release the tenant lanes that nobody is busy with; those with nothing due sleep.

    In a transaction of its own. Answers with the busy ones, and whether any sleeps.
    """
    locked = await tx.each(
        {
            turn.tenant_id: [Bound(store.LOCK_TENANT_LANE, {"tenant_id": turn.tenant_id})]
            for turn in turns
        }
    )
    busy = {turn: taken for turn, taken in turns.items() if not locked[turn.tenant_id][0]}
    held = {turn: taken for turn, taken in turns.items() if turn not in busy}
    return busy, await _released(tx, held, store.RAISE_TENANT_LANE)


async def turn_tenants(tx: Transaction, busy: Mapping[Turn, Taken]) -> bool:
    """Release tenant lanes as they are; it waits for others, so it holds no other locks."""
    ordered = {turn: busy[turn] for turn in sorted(busy, key=attrgetter("tenant_id"))}
    return await _released(tx, ordered, store.TURN_TENANT_LANE)


async def renew(database: Database, held: Sequence[Claimed], lease_s: float) -> None:
    """Prolong claims to a lease from now; those that are lost stay lost."""
    lease = timedelta(seconds=lease_s)
    by_tenant = groupby(sorted(held, key=attrgetter("tenant_id")), attrgetter("tenant_id"))
    work = {tenant_id: [_renewing(tenant_id, list(of), lease)] for tenant_id, of in by_tenant}
    async with database.across(durable=False) as tx:
        await tx.each(work, last=True)


async def _released(tx: Transaction, turns: Mapping[Turn, Taken], statement: Statement) -> bool:
    """Whether any of the tenants sleeps then."""
    if not turns:
        return False
    ended = await tx.each(
        {turn.tenant_id: [Bound(statement, _release(turn, taken))] for turn, taken in turns.items()}
    )
    return any(row.asleep for (released,) in ended.values() for row in released)


def _release(turn: Turn, taken: Taken) -> dict[str, Any]:
    rest = timedelta(seconds=0 if taken.items else REST_S)
    return {"tenant_id": turn.tenant_id, "claim_id": turn.claim_id, "rest": rest}


def _looking(turn: Turn, kinds: Sequence[str], share: int) -> list[Bound]:
    key = {"tenant_id": turn.tenant_id, "claim_id": turn.claim_id}
    limits = {"kinds": list(kinds), "lanes": min(share, LANES_A_TURN)}
    return [
        Bound(store.CHECK_TENANT_CLAIM, key),
        Bound(store.LOCK_DUE_LANES, {"tenant_id": turn.tenant_id, **limits}),
    ]


def _claiming(turn: Turn, found: list[Rows], share: int, lease_s: float) -> list[Bound]:
    """The claim of a turn whose lanes are locked; its second last answer is what was claimed."""
    (tenant,), lanes = found
    lease = timedelta(seconds=lease_s)
    key: dict[str, Any] = {
        "tenant_id": turn.tenant_id,
        "claim_id": turn.claim_id,
        "lane_ids": [row.lane_id for row in lanes],
        "lease": lease,
    }
    half_open = [Bound(store.HALF_OPEN, key)] if any(r.breaker == "OPEN" for r in lanes) else []
    spend = [Bound(store.SPEND_RATE, key)] if any(r.rate_per_s for r in lanes) else []
    claim = rows.CLAIM_CAPPED if tenant.capped else rows.CLAIM
    each = max(1, share // len(lanes))
    return [
        Bound(rows.RELEASE_EXPIRED, key), *half_open, Bound(claim, {**key, "share": each}), *spend
    ]  # fmt: skip


def _taken(turn: Turn, lanes: Rows, answers: list[Rows]) -> Taken:
    claimed = [row for answer in answers for row in answer]
    items = tuple(
        Claimed(
            tenant_id=turn.tenant_id,
            claim_id=turn.claim_id,
            **{**row._asdict(), "retry_s": tuple(row.retry_s)},
        )
        for row in claimed
    )
    return Taken(items, tuple(row.lane_id for row in lanes))


def _renewing(tenant_id: UUID, held: Sequence[Claimed], lease: timedelta) -> Bound:
    works = [each.work_id for each in held]
    claims = [each.claim_id for each in held]
    values = {"tenant_id": tenant_id, "works": works, "claims": claims, "lease": lease}
    return Bound(rows.RENEW_HELD, values)
