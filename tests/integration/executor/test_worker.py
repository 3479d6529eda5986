"""Workers on a real database: woken, fair, bounded, patient with failures, tidy when they go."""

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from services.chassis.database import Database
from services.executor.engine.recorder import Recorder
from services.executor.engine.work import Claimed, Done, Outcome, Why
from services.executor.engine.worker import Worker, WorkerLimits
from tests.integration.executor.lane_bench import LaneBench

Admin = psycopg.AsyncConnection[Any]
# Long enough that only a notice, never the poll, explains what a test sees at once.
NO_POLL = WorkerLimits(poll_s=600)


class Recorded:
    """Work that notes what ran, and does what it is told first."""

    name = LaneBench.KIND

    def __init__(self, before: Callable[[Claimed], Awaitable[None]] | None = None) -> None:
        self._before = before
        self.ran: Counter[UUID] = Counter()
        self.attempts: list[int] = []
        self.given_up: list[str] = []
        self.active = 0
        self.most_active = 0

    async def prepare(self, claimed: Claimed) -> None:
        self.attempts.append(claimed.attempt)

    async def call(self, claimed: Claimed, prepared: None) -> Outcome:
        self.active += 1
        self.most_active = max(self.active, self.most_active)
        try:
            if self._before:
                await self._before(claimed)
        finally:
            self.active -= 1
        return Done(told=lambda _: self.ran.update([claimed.target_id]))

    def give_up(self, claimed: Claimed, why: Why) -> Done:
        self.given_up.append(why)
        return Done()

    async def until(self, count: int) -> None:
        """Return once so many items have run."""
        await until(lambda: self.ran.total() >= count)


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Return once the condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def working(
    database: Database, kind: Recorded, limits: WorkerLimits | None = None
) -> AsyncIterator[asyncio.Task[None]]:
    """A worker that runs until the block ends."""
    task = asyncio.create_task(
        Worker(database, {kind.name: kind}, Recorder(database), limits).run()
    )
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def listening(admin: Admin) -> None:
    """Return once a worker listens, so that what follows wakes it."""
    query = (
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
    )
    async with asyncio.timeout(10):
        while not (await admin.execute(query)).rowcount:
            await asyncio.sleep(0.01)


async def test_enqueued_work_wakes_a_worker(bench: LaneBench, admin: Admin) -> None:
    kind = Recorded()
    async with working(bench.database, kind, NO_POLL):
        await listening(admin)
        for count in range(1, 6):
            await bench.enqueue(bench.item())
            await kind.until(count)
    assert set(kind.ran.values()) == {1}


async def test_delayed_work_runs_at_its_time_without_a_notice(bench: LaneBench) -> None:
    kind = Recorded()
    await bench.enqueue(bench.item(delay_s=0.4))
    async with working(bench.database, kind, WorkerLimits(poll_s=15)):
        await until(lambda: kind.ran.total() == 1, seconds=10)


async def test_a_lane_that_was_full_goes_on_at_once(bench: LaneBench) -> None:
    kind = Recorded()
    await bench.enqueue(*(bench.item(concurrency=1) for _ in range(10)))
    async with working(bench.database, kind, NO_POLL):
        await kind.until(10)
    assert kind.most_active == 1


async def test_a_worker_runs_no_more_at_once_than_it_may(bench: LaneBench) -> None:
    gate = asyncio.Event()

    async def wait(_: Claimed) -> None:
        await gate.wait()

    kind = Recorded(wait)
    await bench.enqueue(*(bench.item() for _ in range(8)))
    async with working(bench.database, kind, WorkerLimits(items=3, poll_s=0.05)):
        await until(lambda: kind.active == 3)
        await asyncio.sleep(0.3)
        gate.set()
        await kind.until(8)
    assert kind.most_active == 3


async def test_failed_work_is_logged_and_tried_again_later(
    bench: LaneBench, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail_twice(claimed: Claimed) -> None:
        if claimed.attempt < 3:
            raise LookupError

    kind = Recorded(fail_twice)
    await bench.enqueue(bench.item(retry_s=(0.05, 0.05)))
    with caplog.at_level(logging.ERROR):
        async with working(bench.database, kind):
            await kind.until(1)
    assert kind.attempts == [1, 2, 3]
    assert [record.getMessage() for record in caplog.records] == [
        "execution failed at attempt 1",
        "execution failed at attempt 2",
    ]


async def test_a_long_run_keeps_its_lease(bench: LaneBench) -> None:
    async def outlast_the_lease(_: Claimed) -> None:
        await asyncio.sleep(2.0)

    kind = Recorded(outlast_the_lease)
    await bench.enqueue(bench.item())
    limits = WorkerLimits(lease_s=0.9, poll_s=0.1)
    async with working(bench.database, kind, limits), working(bench.database, kind, limits):
        await kind.until(1)
    assert kind.attempts == [1]


async def test_a_going_worker_lets_work_end(bench: LaneBench) -> None:
    gate = asyncio.Event()

    async def wait(_: Claimed) -> None:
        await gate.wait()

    kind = Recorded(wait)
    await bench.enqueue(bench.item())
    async with working(bench.database, kind) as worker:
        await until(lambda: kind.active == 1)
        worker.cancel()
        await bench.enqueue(bench.item())
        await asyncio.sleep(0.1)
        assert not worker.done()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await worker
    assert kind.ran.total() == 1
    assert len(await bench.take()) == 1


async def test_a_gone_worker_gives_back_what_did_not_end(bench: LaneBench) -> None:
    async def wait_for_ever(_: Claimed) -> None:
        await asyncio.Event().wait()

    kind = Recorded(wait_for_ever)
    await bench.enqueue(bench.item())
    async with working(bench.database, kind, WorkerLimits(grace_s=0.05)):
        await until(lambda: kind.active == 1)
    (claimed,) = await bench.take()
    assert claimed.attempt == 2


async def test_a_worker_outlives_its_connections(bench: LaneBench, admin: Admin) -> None:
    kind = Recorded()
    async with working(bench.database, kind, WorkerLimits(poll_s=0.1)):
        await listening(admin)
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await _enqueue_again(bench)
        await kind.until(1)


async def _enqueue_again(bench: LaneBench) -> None:
    """Enqueue, however many broken connections the pool hands out first."""
    for _ in range(20):
        with contextlib.suppress(Exception):
            return await bench.enqueue(bench.item())
    raise AssertionError


async def test_four_enqueuers_and_four_workers_strand_nothing(
    executor_database: Database, executor_conninfos: Any
) -> None:
    benches = [LaneBench(executor_database) for _ in range(3)]
    lane_ids = [uuid4() for _ in range(3)]
    enqueued: list[UUID] = []
    stop = asyncio.get_running_loop().time() + 4

    async def enqueuer() -> None:
        while asyncio.get_running_loop().time() < stop:
            bench = random.choice(benches)
            items = [bench.item(random.choice(lane_ids), concurrency=3) for _ in range(2)]
            await bench.enqueue(*items)
            enqueued.extend(item.target_id for item in items)
            await asyncio.sleep(random.random() * 0.05)

    kind = Recorded()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(4):
            pools = await stack.enter_async_context(Database(*executor_conninfos, pool_size=4))
            await stack.enter_async_context(working(pools, kind))
        await asyncio.gather(*(enqueuer() for _ in range(4)))
        await kind.until(len(enqueued))
    assert kind.ran == Counter(enqueued)


async def test_what_is_cancelled_before_it_begins_keeps_no_claim(
    executor_database: Database, admin: Admin
) -> None:
    bench, kind = LaneBench(executor_database), Recorded()
    await bench.enqueue(bench.item())
    (claimed,) = await bench.take()
    worker = Worker(executor_database, {kind.name: kind}, bench.recorder)
    await worker.start(claimed)
    # Its task has not taken a step yet.
    worker._cancel(str(claimed.work_id))
    await until(lambda: not worker._running)
    assert kind.given_up == ["CANCELLED"] and not kind.ran
    left = await (await admin.execute("SELECT count(*) FROM executor.work")).fetchone()
    assert left == (0,)
