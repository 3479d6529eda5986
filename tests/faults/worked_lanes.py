"""Lanes under workers that are killed: what was enqueued, and became of it."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

from services.executor.engine import lanes
from services.executor.engine.work import LanePolicy, WorkItem
from tests.faults.killed_workers import KilledWorkers
from tests.faults.lane_worker import KIND, LEDGER

TENANTS: Final = 20
RETRY_S: Final = (0.1,) * 100
POLICIES: Final = (
    *[LanePolicy(concurrency=32, retry_s=RETRY_S)] * 3,
    LanePolicy(ordering="key", retry_s=RETRY_S),
    LanePolicy(ordering="lane", retry_s=RETRY_S),
)
SHARES: Final = (30, 30, 30, 8, 2)
KEYS: Final = 10


@dataclass(frozen=True, slots=True)
class Call:
    """One call, from its beginning to its end, or to the end of its process."""

    target_id: UUID
    claim_id: UUID
    began: float
    ended: float


@dataclass
class WorkedLanes:
    """The workers, and all that was enqueued."""

    workers: KilledWorkers
    items: dict[UUID, WorkItem] = field(default_factory=dict)

    def prepare(self) -> None:
        """The table that the workers record in, the lanes, the workers."""
        self.workers.rows(f"CREATE TABLE {LEDGER} (target_id uuid NOT NULL, how text NOT NULL)")
        self.workers.rows(f"GRANT INSERT ON {LEDGER} TO {self.workers.logins[0]}")
        self._lanes = {uuid4(): [uuid4() for _ in POLICIES] for _ in range(TENANTS)}
        self.workers.arguments = [str(self._calls)]
        self.workers.begin()

    def enqueue(self, count: int = TENANTS) -> None:
        """So many more, spread over all tenants, each in a transaction of its own."""
        asyncio.run(self._enqueue(count))

    def calls(self) -> list[Call]:
        """All calls that were begun, in their order."""
        begun: dict[tuple[str, str, int], float] = {}
        found = []
        for line in self._calls.read_text().splitlines():
            what, at, pid, target, claim = line.split()
            key = (target, claim, int(pid))
            if what == "begin":
                begun[key] = float(at)
            else:
                found.append(Call(UUID(target), UUID(claim), begun.pop(key), float(at)))
        found += [
            Call(UUID(target), UUID(claim), at, self.workers.deaths[pid])
            for (target, claim, pid), at in begun.items()
        ]
        return sorted(found, key=lambda call: call.began)

    def overlaps(self, calls: list[Call]) -> list[tuple[Call, Call]]:
        """Calls of one item, or of one key that goes in order, that were under way together."""
        together: dict[Any, list[Call]] = defaultdict(list)
        for call in calls:
            together[self.sequence(call.target_id) or call.target_id].append(call)
        return [
            (one, next_)
            for of in together.values()
            for one, next_ in pairwise(of)
            if next_.began < one.ended and not self.workers.was_out(next_.began)
        ]

    def sequence(self, target_id: UUID) -> tuple[UUID, str] | None:
        """The lane and key within which an item goes in order."""
        item = self.items[target_id]
        return None if item.policy.ordering == "none" else (item.lane_id, item.key)

    @property
    def _calls(self) -> Path:
        return self.workers.folder / "calls"

    async def _enqueue(self, count: int) -> None:
        async with self.workers.database() as database:
            for tenant_id, lane_ids in self._lanes.items():
                items = [self._item(lane_ids) for _ in range(count // TENANTS)]
                async with database.tenant(tenant_id) as tx:
                    await lanes.enqueue(tx, tenant_id, items)
                self.items |= {item.target_id: item for item in items}

    def _item(self, lane_ids: list[UUID]) -> WorkItem:
        (at,) = self.workers.random.choices(range(len(POLICIES)), SHARES)
        key = str(self.workers.random.randrange(KEYS)) if POLICIES[at].ordering == "key" else ""
        return WorkItem(KIND, lane_ids[at], uuid4(), key=key, policy=POLICIES[at])
