"""One tenant's lanes, driven by hand: what a worker does, a step at a time."""

from typing import Any
from uuid import UUID, uuid4

from services.chassis.database import Database
from services.executor import lanes
from services.executor.lanes import Claimed, WorkItem


class LaneBench:
    """One tenant's lanes, driven by hand."""

    KIND = "execution"

    def __init__(self, database: Database) -> None:
        self.database = database
        self.tenant_id = uuid4()
        self.lane_id = uuid4()

    def item(self, lane_id: UUID | None = None, **fields: Any) -> WorkItem:
        """Work in the bench's lane, or another one."""
        return WorkItem(self.KIND, lane_id or self.lane_id, uuid4(), **fields)

    async def enqueue(self, *items: WorkItem) -> None:
        """Enqueue in a transaction of its own."""
        async with self.database.tenant(self.tenant_id) as tx:
            await lanes.enqueue(tx, self.tenant_id, items)

    async def take_at_once(self, item: WorkItem) -> Claimed | None:
        """Enqueue what somebody waits for; the work, if it was taken."""
        async with self.database.tenant(self.tenant_id) as tx:
            return await lanes.take(tx, self.tenant_id, item, 30.0)

    async def take(self, share: int = 100, lease_s: float = 30.0) -> list[Claimed]:
        """What a worker finds now, in one round, having settled."""
        found: list[Claimed] = []
        look = await lanes.claim_tenants(self.database, 10)
        for turn in look.turns:
            taken = await lanes.claim_work(self.database, turn, [self.KIND], share, lease_s)
            await lanes.settle(self.database, turn, taken.lane_ids)
            found += taken.items
        return found

    async def complete(self, claimed: Claimed) -> bool:
        """Complete in a transaction of its own."""
        async with self.database.tenant(claimed.tenant_id) as tx:
            return await lanes.complete(tx, claimed)
