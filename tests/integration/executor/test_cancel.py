"""Work that ends without an outcome of its own: cancelled, too late, or tried often enough."""

import asyncio
from typing import Any
from uuid import UUID

import psycopg
import pytest

from services.chassis.errors import Unavailable
from services.executor.engine import lanes, steering
from services.executor.engine.steering import Limits
from services.executor.engine.work import Claimed, LanePolicy, Later
from services.executor.engine.worker import WorkerLimits
from tests.integration.executor.lane_bench import LaneBench, pass_time
from tests.integration.executor.test_worker import NO_POLL, Recorded, listening, until, working

Admin = psycopg.AsyncConnection[Any]


async def cancel(bench: LaneBench, target_id: UUID) -> bool:
    """Cancel in a transaction of its own."""
    async with bench.database.tenant(bench.tenant_id) as tx:
        return await lanes.cancel(tx, bench.tenant_id, target_id)


async def for_ever(_: Claimed) -> None:
    await asyncio.Event().wait()


async def test_waiting_work_that_is_cancelled_is_gone(bench: LaneBench) -> None:
    item, other = bench.item(), bench.item()
    await bench.enqueue(item, other)
    assert await cancel(bench, item.target_id)
    assert not await cancel(bench, item.target_id)
    assert [claimed.target_id for claimed in await bench.take()] == [other.target_id]


async def test_running_work_that_is_cancelled_is_given_up_at_once(
    bench: LaneBench, admin: Admin
) -> None:
    kind, item = Recorded(for_ever), bench.item()
    async with working(bench.database, kind, NO_POLL):
        await listening(admin)
        await bench.enqueue(item)
        await until(lambda: kind.active == 1)
        assert not await cancel(bench, item.target_id)
        await until(lambda: kind.given_up == ["CANCELLED"])
        assert kind.active == 0
    assert not await cancel(bench, item.target_id)


async def test_cancelled_work_of_a_dead_worker_is_given_up_and_not_called(
    bench: LaneBench, admin: Admin
) -> None:
    kind, item = Recorded(), bench.item()
    await bench.enqueue(item)
    await bench.take()
    assert not await cancel(bench, item.target_id)
    await pass_time(admin, 31)
    async with working(bench.database, kind):
        await until(lambda: kind.given_up == ["CANCELLED"])
    assert not kind.ran
    assert kind.attempts == []


async def test_cancelled_work_that_its_worker_postpones_is_due_at_once(bench: LaneBench) -> None:
    item = bench.item()
    await bench.enqueue(item)
    (claimed,) = await bench.take()
    assert not await cancel(bench, item.target_id)
    assert await bench.record(claimed, Later(delay_s=3600))
    (again,) = await bench.take()
    assert again.cancelled


async def test_work_that_is_cancelled_while_it_is_being_postponed_is_cancelled(
    bench: LaneBench, admin: Admin
) -> None:
    item = bench.item()
    await bench.enqueue(item)
    (claimed,) = await bench.take()
    async with bench.database.across() as tx:
        await bench.end(tx, (claimed, Later(delay_s=3600)))
        cancelling = asyncio.create_task(cancel(bench, item.target_id))
        await asyncio.wait([cancelling], timeout=0.2)
        assert not cancelling.done()
    assert await cancelling
    rows = await admin.execute("SELECT FROM executor.work")
    assert rows.rowcount == 0


async def test_work_that_waited_beyond_its_deadline_is_not_begun(
    bench: LaneBench, admin: Admin
) -> None:
    kind = Recorded()
    await bench.enqueue(bench.item(deadline_s=60))
    await pass_time(admin, 61)
    async with working(bench.database, kind):
        await until(lambda: kind.given_up == ["DEADLINE_EXCEEDED"])
    assert kind.attempts == []


async def test_work_that_runs_beyond_its_deadline_is_stopped(bench: LaneBench) -> None:
    kind = Recorded(for_ever)
    await bench.enqueue(bench.item(deadline_s=0.3))
    async with working(bench.database, kind):
        await until(lambda: kind.given_up == ["DEADLINE_EXCEEDED"])
    assert kind.active == 0


async def test_work_whose_next_try_comes_after_its_deadline_is_given_up_then(
    bench: LaneBench, admin: Admin
) -> None:
    await bench.enqueue(bench.item(deadline_s=60))
    (claimed,) = await bench.take()
    assert await bench.record(claimed, Later(delay_s=3600))
    assert await bench.take() == []
    await pass_time(admin, 61)
    (late,) = await bench.take()
    assert late.left_s is not None
    assert late.left_s <= 0


async def test_work_that_fails_once_more_than_its_schedule_is_given_up(bench: LaneBench) -> None:
    async def fail(_: Claimed) -> None:
        raise LookupError

    kind = Recorded(fail)
    await bench.enqueue(bench.item(retry_s=(0.02, 0.02)))
    async with working(bench.database, kind):
        await until(lambda: kind.given_up == ["EXHAUSTED"])
    assert kind.attempts == [1, 2, 3]
    assert not kind.ran


async def test_work_whose_service_is_away_waits_and_is_not_counted(bench: LaneBench) -> None:
    failures = []

    async def be_away(claimed: Claimed) -> None:
        failures.append(claimed.failures)
        if claimed.attempt < 5:
            raise Unavailable("the service is away")

    kind = Recorded(be_away)
    await bench.enqueue(bench.item(retry_s=()))
    async with working(bench.database, kind, WorkerLimits(away_s=0.01)):
        await kind.until(1)
    assert failures == [0] * 5
    assert kind.given_up == []


async def resume(bench: LaneBench) -> None:
    async with bench.database.tenant(bench.tenant_id) as tx:
        await steering.resume(tx, bench.tenant_id, bench.lane_id)


async def widen(bench: LaneBench) -> None:
    async with bench.database.tenant(bench.tenant_id) as tx:
        policies = {bench.lane_id: LanePolicy(concurrency=2)}
        await steering.shape(tx, bench.tenant_id, bench.KIND, policies)


async def unpause(bench: LaneBench) -> None:
    async with bench.database.tenant(bench.tenant_id) as tx:
        await steering.govern(tx, bench.tenant_id, Limits())


async def pause_lane(bench: LaneBench) -> None:
    async with bench.database.tenant(bench.tenant_id) as tx:
        await steering.pause(tx, bench.tenant_id, bench.lane_id, "a test")


async def pause_tenant(bench: LaneBench) -> None:
    async with bench.database.tenant(bench.tenant_id) as tx:
        await steering.govern(tx, bench.tenant_id, Limits(paused=True))


async def fill(bench: LaneBench) -> None:
    assert await bench.take_at_once(bench.item()) is not None


@pytest.mark.parametrize(
    ("stop", "go_on"), [(pause_lane, resume), (pause_tenant, unpause), (fill, widen)]
)
async def test_what_may_go_on_again_does_so_at_once(
    bench: LaneBench, admin: Admin, stop: Any, go_on: Any
) -> None:
    kind = Recorded()
    await bench.enqueue(bench.item(concurrency=1))
    (first,) = await bench.take()
    assert await bench.complete(first)
    await stop(bench)
    async with working(bench.database, kind, NO_POLL):
        await listening(admin)
        await bench.enqueue(bench.item(concurrency=1))
        await asyncio.sleep(0.3)
        assert not kind.ran
        await go_on(bench)
        await kind.until(1)


async def test_the_next_of_a_key_goes_on_at_once_when_the_first_is_cancelled(
    bench: LaneBench, admin: Admin
) -> None:
    first, second = bench.item(ordering="lane", delay_s=3600), bench.item(ordering="lane")
    kind = Recorded()
    async with working(bench.database, kind, NO_POLL):
        await listening(admin)
        await bench.enqueue(first, second)
        await asyncio.sleep(0.3)
        assert not kind.ran
        assert await cancel(bench, first.target_id)
        await kind.until(1)
    assert list(kind.ran) == [second.target_id]
