"""Work that goes in order: one of a key at a time, in the order of enqueueing, and nobody left behind."""

import asyncio
import contextlib
import random
from collections import defaultdict
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
import pytest

from services.chassis.database import Database
from services.executor.engine import lanes, steering
from services.executor.engine.recorder import Recorder
from services.executor.engine.work import Claimed, Done, Failed, Later, Outcome, WorkItem
from services.executor.engine.worker import Worker, WorkerLimits
from services.executor.store import lanes as store
from tests.integration.executor.lane_bench import LaneBench
from tests.integration.executor.test_worker import Recorded, until

Admin = psycopg.AsyncConnection[Any]
RETRIES: Final = (0.01,) * 1000
WORKERS: Final = 4


class InOrder(Recorded):
    """Work of keyed lanes that sometimes fails; it notes what began, and sees that none overlap."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: dict[tuple[UUID, str | None], list[UUID]] = defaultdict(list)
        self.overlaps: list[Claimed] = []
        self.begun: list[UUID] = []
        self._active: set[tuple[UUID, str | None]] = set()
        self._random = random.Random(7)

    async def call(self, claimed: Claimed, prepared: None) -> Outcome:
        of = (claimed.lane_id, claimed.key)
        if of in self._active:
            self.overlaps.append(claimed)
        self._active.add(of)
        self.begun.append(claimed.target_id)
        try:
            await asyncio.sleep(self._random.random() * 0.004)
        finally:
            self._active.discard(of)
        chance = self._random.random()
        if chance < 0.1:
            return Failed()
        if chance < 0.2:
            return Later(delay_s=0.01)
        self.ended[of].append(claimed.target_id)
        return Done(told=lambda _: self.ran.update([claimed.target_id]))


@contextlib.asynccontextmanager
async def four_working(conninfos: Any, kind: Recorded) -> Any:
    """Workers with pools of their own, as in processes of their own."""
    async with contextlib.AsyncExitStack() as stack:
        tasks = []
        for _ in range(WORKERS):
            pools = await stack.enter_async_context(
                Database(*conninfos, pool_size=3, constraints=lanes.CONSTRAINTS)
            )
            worker = Worker(pools, {kind.name: kind}, Recorder(pools), WorkerLimits(poll_s=0.2))
            tasks.append(asyncio.create_task(worker.run()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def deadlocks(admin: Admin) -> int:
    """How many PostgreSQL has had to break in this database."""
    await admin.execute("SELECT pg_stat_clear_snapshot()")
    row = await (
        await admin.execute(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        )
    ).fetchone()
    assert row
    return int(row[0])


@pytest.mark.parametrize(("ordering", "keys"), [("lane", 1), ("key", 12)])
async def test_one_of_a_key_at_a_time_in_the_order_of_enqueueing(
    bench: LaneBench, admin: Admin, executor_conninfos: Any, ordering: str, keys: int
) -> None:
    kind, expected = InOrder(), defaultdict(list)
    lane_ids = [uuid4() for _ in range(3)]

    async def enqueuer(seed: int) -> None:
        """All of a key come from one enqueuer: between several there is no order to keep."""
        chance = random.Random(seed)
        for _ in range(30):
            items = [
                bench.item(
                    chance.choice(lane_ids),
                    key=f"{seed} {chance.randrange(keys)}" if ordering == "key" else "",
                    ordering=ordering,
                    retry_s=RETRIES,
                )
                for _ in range(3 if ordering == "key" else 1)
            ]
            await bench.enqueue(*items)
            for item in items:
                expected[(item.lane_id, item.key)].append(item.target_id)

    enqueuers = 3 if ordering == "key" else 1
    async with four_working(executor_conninfos, kind):
        await asyncio.gather(*(enqueuer(seed) for seed in range(enqueuers)))
        await kind.until(sum(map(len, expected.values())))
    assert kind.overlaps == []
    assert kind.ended == expected
    assert await deadlocks(admin) == 0


async def test_other_keys_go_on_beside_one_that_is_stuck(bench: LaneBench) -> None:
    def item(key: str) -> WorkItem:
        return bench.item(key=key, ordering="key", concurrency=32, retry_s=(3600.0,))

    await bench.enqueue(item("stuck"), *(item("stuck") for _ in range(5)))
    (stuck,) = await bench.take()
    assert await bench.record(stuck, Failed())
    others = [item(f"key {number}") for number in range(20)]
    await bench.enqueue(*others, item("stuck"))
    taken = await bench.take()
    assert {claimed.target_id for claimed in taken} == {other.target_id for other in others}


async def test_a_lane_in_order_waits_for_the_next_try_of_its_first(bench: LaneBench) -> None:
    first, second = (bench.item(ordering="lane", retry_s=(0.0,)) for _ in range(2))
    await bench.enqueue(first, second)
    (claimed,) = await bench.take()
    assert await bench.record(claimed, Later(delay_s=3600))
    assert await bench.take() == []


@pytest.mark.parametrize("outcome", [Done(), Failed(), Later(delay_s=0)])
async def test_what_is_enqueued_while_the_last_of_its_key_ends_is_not_left_blocked(
    bench: LaneBench, outcome: Outcome
) -> None:
    """The enqueuer must not take the one that ends for one that is still there."""
    await bench.enqueue(bench.item(ordering="key", key="a", retry_s=(0.0,)))
    (claimed,) = await bench.take()
    async with bench.database.across() as tx:
        await bench.end(tx, (claimed, outcome))
        enqueueing = asyncio.create_task(
            bench.enqueue(bench.item(ordering="key", key="a", retry_s=(0.0,)))
        )
        # Either it waits for the lane, or what ends is to go on and holds it back rightly.
        await asyncio.wait([enqueueing], timeout=0.2)
    await enqueueing
    taken = []
    while found := await bench.take():
        for each in found:
            taken.append(each.target_id)
            assert await bench.complete(each)
    assert len(taken) == (1 if isinstance(outcome, Done) else 2)


async def test_who_cancels_and_who_postpones_lock_the_lane_first(
    bench: LaneBench, admin: Admin
) -> None:
    """Else one would wait for the lane, the other for its work."""
    await bench.enqueue(bench.item(ordering="key", key="a"))
    (claimed,) = await bench.take()
    key = {"tenant_id": bench.tenant_id, "target_id": claimed.target_id}
    async with bench.database.tenant(bench.tenant_id) as tx:
        await tx.run(store.LOCK_ORDERED_OF_TARGET, **key)
        postponing = asyncio.create_task(bench.record(claimed, Later(delay_s=0)))
        await asyncio.wait([postponing], timeout=0.2)
        assert not await lanes.cancel(tx, bench.tenant_id, claimed.target_id)
    assert await postponing
    assert await deadlocks(admin) == 0


async def test_ending_enqueueing_and_cancelling_meet_no_deadlock(
    executor_database: Database, admin: Admin, executor_conninfos: Any
) -> None:
    """With quotas, which lock the tenant lane, and orders, which lock lanes."""
    bench = LaneBench(executor_database)
    lane_ids = [uuid4() for _ in range(3)]
    async with executor_database.tenant(bench.tenant_id) as tx:
        await steering.govern(tx, bench.tenant_id, steering.Limits(work_per_hour=1_000_000))
    kind, cancelled, enqueued = InOrder(), set[UUID](), set[UUID]()
    stop = asyncio.get_running_loop().time() + 3

    async def enqueuer() -> None:
        while asyncio.get_running_loop().time() < stop:
            items = [
                bench.item(
                    random.choice(lane_ids),
                    ordering="key",
                    key=random.choice("abc"),
                    retry_s=RETRIES,
                )
                for _ in range(3)
            ]
            await bench.enqueue(*items)
            enqueued.update(item.target_id for item in items)
            for target_id in (items[1].target_id, *kind.begun[-4:]):
                async with executor_database.tenant(bench.tenant_id) as tx:
                    if await lanes.cancel(tx, bench.tenant_id, target_id):
                        cancelled.add(target_id)

    async with four_working(executor_conninfos, kind):
        await asyncio.gather(*(enqueuer() for _ in range(4)))
        await until(lambda: _all_ended(kind, enqueued, cancelled))
    assert kind.overlaps == []
    assert await deadlocks(admin) == 0


def _all_ended(kind: InOrder, enqueued: set[UUID], cancelled: set[UUID]) -> bool:
    """Whether each ran, was cancelled while it waited, or was cancelled while it ran."""
    return len(kind.ran) + len(cancelled) + len(kind.given_up) >= len(enqueued)
