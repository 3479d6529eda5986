"""The lane doctor finds what was stranded by hand, and nothing in the engine's own work."""

import asyncio
import logging
from datetime import timedelta
from random import Random
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from services.chassis.database import Database
from services.executor.engine import doctor, lanes, steering
from services.executor.engine.doctor import Doctor
from services.executor.engine.work import Breaker, Claimed, Done, Failed, Later, Outcome
from tests.integration.executor.lane_bench import LaneBench
from tests.integration.executor.test_worker import Recorded, working

Admin = psycopg.AsyncConnection[Any]
NONE = {"lane": 0, "tenant": 0}
ASLEEP = "UPDATE executor.{} SET next_at = 'infinity'"


@pytest.fixture
def called(bench: LaneBench) -> Doctor:
    return Doctor(bench.database)


@pytest.mark.parametrize(
    ("stranded", "repairs"),
    [
        (("lanes",), {"lane": 1, "tenant": 0}),
        (("tenant_lanes",), {"lane": 0, "tenant": 1}),
        # The tenant slept by what its lanes said, and is woken with its lane.
        (("lanes", "tenant_lanes"), {"lane": 1, "tenant": 0}),
    ],
)
async def test_stranded_work_is_found_counted_told_and_taken(
    bench: LaneBench,
    admin: Admin,
    called: Doctor,
    caplog: pytest.LogCaptureFixture,
    stranded: tuple[str, ...],
    repairs: dict[str, int],
) -> None:
    await bench.enqueue(bench.item())
    for table in stranded:
        await admin.execute(ASLEEP.format(table))
    assert await bench.take() == []
    await admin.execute(f"LISTEN {lanes.CHANNEL}")
    with caplog.at_level(logging.WARNING):
        await called.round()
    assert called.repairs == repairs
    assert str(bench.lane_id if repairs["lane"] else bench.tenant_id) in caplog.text
    assert [notice async for notice in admin.notifies(timeout=10, stop_after=1)]
    assert len(await bench.take()) == 1
    await called.round()
    assert called.repairs == repairs


async def test_a_dead_claim_that_no_lane_would_end_is_found(
    bench: LaneBench, admin: Admin, called: Doctor
) -> None:
    await bench.enqueue(bench.item(concurrency=1))
    (dead,) = await bench.take()
    await admin.execute("UPDATE executor.work SET lease_until = now() - interval '1 minute'")
    for table in ("lanes", "tenant_lanes"):
        await admin.execute(ASLEEP.format(table))
    await called.round()
    assert called.repairs == {"lane": 1, "tenant": 0}
    (again,) = await bench.take()
    assert again.work_id == dead.work_id


async def test_what_sleeps_for_a_reason_is_let_sleep(
    bench: LaneBench, admin: Admin, called: Doctor
) -> None:
    held, later, full, open_, rated = (uuid4() for _ in range(5))
    await bench.enqueue(
        bench.item(held),
        bench.item(later, delay_s=3600),
        bench.item(full, concurrency=1),
        bench.item(full, concurrency=1),
        bench.item(open_, breaker=Breaker(1, 600), retry_s=(1.0,)),
        bench.item(rated, rate_per_s=0.001),
        bench.item(rated, rate_per_s=0.001),
    )
    async with bench.database.tenant(bench.tenant_id) as tx:
        await steering.pause(tx, bench.tenant_id, held, "by hand")
    for claimed in await bench.take():
        if claimed.lane_id == open_:
            assert await bench.record(claimed, Failed(worked=False))
    assert await bench.take() == []
    await called.round()
    assert called.repairs == NONE
    await admin.execute(
        "UPDATE executor.lanes SET next_at = next_at + interval '14 s' WHERE next_at < 'infinity'"
    )
    await called.round()
    assert called.repairs == NONE
    # The deferred, the full, the open and the rated one; the paused one is let sleep.
    await admin.execute(ASLEEP.format("lanes"))
    await called.round()
    assert called.repairs["lane"] == 4


async def test_a_round_tells_what_there_is_to_do_over_all_tenants(
    executor_database: Database, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "TENANTS_AT_ONCE", 2)
    called = Doctor(executor_database)
    await called.round()
    assert called.loads == {}
    for _ in range(5):
        bench = LaneBench(executor_database)
        await bench.enqueue(bench.item(), bench.item(), bench.item(delay_s=60))
        await bench.enqueue(bench.item(uuid4()), bench.item(uuid4()))
    taken = len(await bench.take(share=1))
    await admin.execute("UPDATE executor.work SET due_at = due_at - interval '40 s'")
    await called.round()
    assert called.loads is not None
    load = called.loads[LaneBench.KIND]
    assert 0 < taken < 20
    assert (load.waiting, load.due, load.claimed) == (25 - taken, 20 - taken, taken)
    assert 40 <= load.oldest_s < 100


async def test_in_the_normal_load_there_is_nothing_to_repair(executor_database: Database) -> None:
    """Full, ordered, rated, failing and postponed lanes, while the doctor goes round and round."""
    rng = Random(7)
    benches = [LaneBench(executor_database) for _ in range(6)]
    called = Doctor(executor_database, timedelta(seconds=0.5))

    async def some(_: Claimed) -> None:
        await asyncio.sleep(rng.random() / 100)

    class Moody(Recorded):
        async def call(self, claimed: Claimed, prepared: None) -> Outcome:
            done = await super().call(claimed, prepared)
            if rng.random() < 0.2 and claimed.attempt < 4:
                return rng.choice((Later(delay_s=0.05), Failed(worked=False)))
            return Done(told=done.told, worked=True)

    policies: list[dict[str, Any]] = [
        {"concurrency": 1},
        {"ordering": "lane"},
        {"rate_per_s": 50.0, "burst": 2},
        {"breaker": Breaker(3, 0.2)},
        {},
    ]
    lane_of: dict[Any, Any] = {}
    kind, total = Moody(some), 0
    async with working(executor_database, kind), working(executor_database, kind):
        for _ in range(30):
            bench, policy = rng.choice(benches), rng.randrange(len(policies))
            lane_id = lane_of.setdefault((bench.tenant_id, policy), uuid4())
            many = rng.randint(1, 10)
            shape = {"retry_s": (0.05,) * 4, **policies[policy]}
            await bench.enqueue(*(bench.item(lane_id, **shape) for _ in range(many)))
            total += many
            await called.round()
        async with asyncio.timeout(60):
            while called.loads:
                await called.round()
    assert len(kind.ran) >= total - len(kind.given_up)
    assert called.repairs == NONE
