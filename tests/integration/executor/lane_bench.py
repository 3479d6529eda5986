"""One tenant's lanes, driven by hand: what a worker does, a step at a time."""

import asyncio
from random import Random
from typing import Any
from uuid import UUID, uuid4

import psycopg

from services.chassis.database import Database, Transaction
from services.executor.engine import lanes, turns
from services.executor.engine.recorder import Recorder, _Entry
from services.executor.engine.turns import Taken, Turn
from services.executor.engine.work import Claimed, ClaimLost, Done, LanePolicy, Outcome, WorkItem

POLICY = LanePolicy.__slots__


class LaneBench:
    """One tenant's lanes, driven by hand."""

    KIND = "execution"

    def __init__(self, database: Database) -> None:
        self.database = database
        self.tenant_id = uuid4()
        self.lane_id = uuid4()
        self.recorder = Recorder(database, rng=Random(1))

    def item(self, lane_id: UUID | None = None, **fields: Any) -> WorkItem:
        """Work in the bench's lane, or another one; fields of a policy shape a new lane."""
        policy = LanePolicy(**{n: fields.pop(n) for n in POLICY if n in fields})
        return WorkItem(self.KIND, lane_id or self.lane_id, uuid4(), policy=policy, **fields)

    async def enqueue(self, *items: WorkItem) -> None:
        """Enqueue in a transaction of its own."""
        async with self.database.tenant(self.tenant_id) as tx:
            await lanes.enqueue(tx, self.tenant_id, items)

    async def take_at_once(self, item: WorkItem) -> Claimed | None:
        """Enqueue what somebody waits for; the work, if it was taken."""
        async with self.database.tenant(self.tenant_id) as tx:
            return await lanes.take(tx, self.tenant_id, item, 30.0)

    async def turn(self) -> Turn:
        """One turn of this bench's tenant, or of whichever is due."""
        (turn,) = (await turns.claim_tenants(self.database, 1)).turns
        return turn

    async def claim(self, turn: Turn, share: int = 100, lease_s: float = 30.0) -> Taken:
        """What a turn takes."""
        return (await turns.claim_work(self.database, {turn: share}, [self.KIND], lease_s))[turn]

    async def take(self, share: int = 100, lease_s: float = 30.0) -> list[Claimed]:
        """What a worker finds now, in one round, having settled."""
        look = await turns.claim_tenants(self.database, 10)
        if not look.turns:
            return []
        shares = dict.fromkeys(look.turns, share)
        taken = await turns.claim_work(self.database, shares, [self.KIND], lease_s)
        await turns.settle(self.database, taken)
        return [claimed for each in taken.values() for claimed in each.items]

    async def record(self, claimed: Claimed, outcome: Outcome) -> bool:
        """Record an outcome; False where the claim is lost."""
        try:
            await self.recorder.record(claimed, outcome)
        except ClaimLost:
            return False
        return True

    async def complete(self, claimed: Claimed) -> bool:
        """Complete; False where the claim is lost."""
        return await self.record(claimed, Done())

    async def end(self, tx: Transaction, *ended: tuple[Claimed, Outcome]) -> None:
        """Record outcomes in a transaction that stays open."""
        loop = asyncio.get_running_loop()
        entries = [_Entry(*each, True, loop.create_future()) for each in ended]
        await tx.each(self.recorder._arranged(entries))


async def pass_time(admin: psycopg.AsyncConnection[Any], seconds: float) -> None:
    """Move everything of the engine into the past, which is all it knows of time."""
    for table, columns in {
        "tenant_lanes": ("next_at", "lease_until", "quota_at"),
        "lanes": ("next_at", "open_until", "rate_at"),
        "work": ("due_at", "lease_until", "deadline_at"),
    }.items():
        changes = ", ".join(f"{column} = {column} - %(by)s" for column in columns)
        await admin.execute(
            f"UPDATE executor.{table} SET {changes}".replace("%(by)s", f"'{seconds} s'::interval")
        )
