"""Enqueue, claim, finish: who gets which work, how much of it, and when."""

import asyncio
from collections import Counter
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from services.chassis.database import Database, Statement
from services.chassis.errors import Internal, ResourceExhausted
from services.executor.engine import lanes, steering, turns
from services.executor.engine.work import Claimed, Later
from services.executor.store import lanes as store
from services.executor.store import work as rows
from services.executor.tables import LANES, TENANT_LANES, WORK
from tests.integration.executor.lane_bench import LaneBench, pass_time

Admin = psycopg.AsyncConnection[Any]


async def test_enqueued_work_is_taken_once_and_completed(bench: LaneBench) -> None:
    item = bench.item()
    await bench.enqueue(item)
    (claimed,) = await bench.take()
    assert (claimed.target_id, claimed.kind, claimed.lane_id) == (
        item.target_id,
        item.kind,
        item.lane_id,
    )
    assert claimed.attempt == 1
    assert await bench.take() == []
    assert await bench.complete(claimed)
    assert await bench.take() == []


async def test_enqueuing_nothing_makes_no_lane(bench: LaneBench, admin: Admin) -> None:
    await bench.enqueue()
    rows = await admin.execute("SELECT FROM executor.tenant_lanes")
    assert rows.rowcount == 0


async def test_many_tenants_enqueue_in_one_batch_and_a_refused_one_is_alone(
    executor_database: Database,
) -> None:
    benches = [LaneBench(executor_database) for _ in range(6)]
    over = benches[2]
    async with executor_database.tenant(over.tenant_id) as tx:
        await steering.govern(tx, over.tenant_id, steering.Limits(work_per_hour=1))
    await over.enqueue(over.item())
    wanted = [(bench.tenant_id, [bench.item()]) for bench in benches]
    outcomes = await executor_database.batch(
        wanted, lambda some: {tenant: lanes.enqueueing(tenant, items) for tenant, items in some}
    )
    refused = [items for items, answer in outcomes if isinstance(answer, ResourceExhausted)]
    assert refused == [[wanted[2]]]
    found = {claimed.target_id for claimed in await over.take()}
    assert {items[0].target_id for _, items in wanted if items != wanted[2][1]} <= found


async def test_work_rolled_back_was_never_there(bench: LaneBench) -> None:
    async def enqueue_and_fail() -> None:
        async with bench.database.tenant(bench.tenant_id) as tx:
            await lanes.enqueue(tx, bench.tenant_id, [bench.item()])
            raise LookupError

    with pytest.raises(LookupError):
        await enqueue_and_fail()
    assert await bench.take() == []


async def test_of_a_lane_lower_priority_then_older_goes_first(bench: LaneBench) -> None:
    late, early, urgent = bench.item(), bench.item(), bench.item(priority=-1)
    for item in (early, late, urgent):
        await bench.enqueue(item)
    order = [(await bench.take(share=1))[0].target_id for _ in range(3)]
    assert order == [urgent.target_id, early.target_id, late.target_id]


async def test_work_waits_for_its_time(bench: LaneBench, admin: Admin) -> None:
    await bench.enqueue(bench.item(delay_s=60))
    assert await bench.take() == []
    await pass_time(admin, 61)
    assert len(await bench.take()) == 1


async def test_sooner_work_pulls_a_sleeping_lane_forward(bench: LaneBench) -> None:
    await bench.enqueue(bench.item(delay_s=60))
    await bench.enqueue(bench.item())
    assert len(await bench.take()) == 1


async def test_the_next_due_time_is_told(bench: LaneBench) -> None:
    await bench.enqueue(bench.item(delay_s=40))
    look = await turns.claim_tenants(bench.database, 10)
    assert look.turns == ()
    assert look.next_s is not None
    assert 30 < look.next_s <= 40


async def test_postponed_work_comes_again_with_the_next_attempt(
    bench: LaneBench, admin: Admin
) -> None:
    await bench.enqueue(bench.item())
    (first,) = await bench.take()
    assert await bench.record(first, Later(delay_s=20))
    assert await bench.take() == []
    await pass_time(admin, 21)
    (second,) = await bench.take()
    assert (second.work_id, second.attempt) == (first.work_id, 2)


async def test_a_late_worker_records_nothing(bench: LaneBench, admin: Admin) -> None:
    await bench.enqueue(bench.item())
    (late,) = await bench.take()
    await pass_time(admin, 31)
    (current,) = await bench.take()
    assert current.work_id == late.work_id
    assert current.attempt == 2
    await turns.renew(bench.database, [late], 3600)
    assert not await bench.record(late, Later(delay_s=0))
    assert not await bench.complete(late)
    assert await bench.take() == []
    assert await bench.complete(current)
    assert not await bench.complete(current)


async def test_work_that_somebody_waits_for_is_taken_as_it_is_inserted(
    bench: LaneBench, admin: Admin
) -> None:
    claimed = await bench.take_at_once(bench.item())
    assert claimed is not None
    assert claimed.attempt == 1
    assert await bench.take() == []
    assert await bench.complete(claimed)
    await pass_time(admin, 31)
    assert await bench.take() == []


async def test_work_taken_by_a_process_that_died_is_claimed_when_its_lease_ends(
    bench: LaneBench, admin: Admin
) -> None:
    dead = await bench.take_at_once(bench.item())
    assert dead is not None
    await pass_time(admin, 31)
    (current,) = await bench.take()
    assert (current.work_id, current.attempt) == (dead.work_id, 2)
    assert not await bench.complete(dead)


async def test_work_is_not_taken_past_what_waits_or_into_a_full_lane(bench: LaneBench) -> None:
    await bench.enqueue(bench.item())
    assert await bench.take_at_once(bench.item()) is None
    assert len(await bench.take()) == 2
    full = uuid4()
    assert await bench.take_at_once(bench.item(full, concurrency=1)) is not None
    assert await bench.take_at_once(bench.item(full, concurrency=1)) is None
    assert await bench.take() == []


async def test_a_lane_is_never_taken_fuller_than_its_concurrency(bench: LaneBench) -> None:
    items = [bench.item(concurrency=3) for _ in range(8)]
    taken = await asyncio.gather(*(bench.take_at_once(item) for item in items))
    assert sum(each is not None for each in taken) == 3


async def test_a_renewed_lease_lasts(bench: LaneBench, admin: Admin) -> None:
    await bench.enqueue(bench.item())
    (claimed,) = await bench.take()
    await pass_time(admin, 20)
    await turns.renew(bench.database, [claimed], 30)
    await pass_time(admin, 20)
    assert await bench.take() == []
    assert await bench.complete(claimed)


async def test_a_lane_runs_no_more_at_once_than_it_may(bench: LaneBench) -> None:
    await bench.enqueue(*(bench.item(concurrency=2) for _ in range(5)))
    first = await bench.take()
    assert len(first) == 2
    assert (await turns.claim_tenants(bench.database, 1)).turns == ()
    await bench.complete(first[0])
    assert len(await bench.take()) == 1


async def test_room_in_a_full_lane_is_told_to_every_worker(bench: LaneBench, admin: Admin) -> None:
    await bench.enqueue(bench.item(concurrency=1), bench.item(concurrency=1))
    (claimed,) = await bench.take()
    await admin.execute(f"LISTEN {lanes.CHANNEL}")
    assert await bench.complete(claimed)
    notices = [notice.channel async for notice in admin.notifies(timeout=10, stop_after=1)]
    assert notices == [lanes.CHANNEL]


async def test_two_workers_together_do_not_overfill_a_lane(bench: LaneBench) -> None:
    await bench.enqueue(*(bench.item(concurrency=3) for _ in range(30)))
    found = await asyncio.gather(*(bench.take() for _ in range(6)))
    assert len([claimed for some in found for claimed in some]) == 3


async def test_a_full_lane_wakes_when_a_dead_workers_lease_ends(
    bench: LaneBench, admin: Admin
) -> None:
    await bench.enqueue(bench.item(concurrency=1), bench.item(concurrency=1))
    (dead,) = await bench.take()
    await pass_time(admin, 31)
    (again,) = await bench.take()
    assert again.work_id == dead.work_id


async def test_a_worker_that_dies_before_settling_strands_nothing(
    bench: LaneBench, admin: Admin
) -> None:
    await bench.enqueue(bench.item())
    turn = await bench.turn()
    assert await bench.take() == []
    await pass_time(admin, turns.TENANT_LEASE_S + 1)
    assert len(await bench.take()) == 1
    await bench.enqueue(bench.item())
    assert await bench.claim(turn) == turns.Taken()
    assert len(await bench.take()) == 1


async def test_tenants_take_turns(executor_database: Database) -> None:
    many, few = LaneBench(executor_database), LaneBench(executor_database)
    await many.enqueue(*(many.item(uuid4()) for _ in range(10)))
    await few.enqueue(few.item())
    order = []
    for _ in range(3):
        turn = await many.turn()
        await turns.settle(executor_database, {turn: await many.claim(turn, share=1)})
        order.append(turn.tenant_id)
    assert order == [many.tenant_id, few.tenant_id, many.tenant_id]


async def test_lanes_of_a_tenant_take_turns(bench: LaneBench) -> None:
    deep, shallow = uuid4(), uuid4()
    await bench.enqueue(*(bench.item(deep) for _ in range(3)))
    await bench.enqueue(bench.item(shallow))
    order = [(await bench.take(share=1))[0].lane_id for _ in range(3)]
    assert order == [deep, shallow, deep]


async def test_a_lane_is_claimed_by_one_worker_at_a_time(bench: LaneBench) -> None:
    await bench.enqueue(bench.item())
    turn = await bench.turn()
    async with bench.database.tenant(bench.tenant_id) as other:
        limits = {"kinds": [bench.KIND], "lanes": 1}
        assert await other.all(store.LOCK_DUE_LANES, tenant_id=bench.tenant_id, **limits)
        assert await bench.claim(turn) == turns.Taken()


async def test_lanes_of_a_tenant_share_its_turn(bench: LaneBench) -> None:
    deep, shallow = uuid4(), uuid4()
    await bench.enqueue(*(bench.item(deep) for _ in range(20)))
    await bench.enqueue(bench.item(shallow))
    found = await bench.take(share=4)
    assert {claimed.lane_id for claimed in found} == {deep, shallow}


async def test_work_of_a_kind_nobody_here_knows_is_left(bench: LaneBench, admin: Admin) -> None:
    await bench.enqueue(bench.item())
    turn = await bench.turn()
    taken = await turns.claim_work(bench.database, {turn: 10}, ["delivery"], 30)
    assert taken == {turn: turns.Taken()}
    await turns.settle(bench.database, taken)
    await pass_time(admin, turns.REST_S)
    assert len(await bench.take()) == 1


async def test_another_tenants_transaction_sees_and_touches_nothing(bench: LaneBench) -> None:
    await bench.enqueue(bench.item())
    (claimed,) = await bench.take()
    async with bench.database.tenant(uuid4()) as tx:
        for table in (TENANT_LANES, LANES, WORK):
            statement = Statement(table.select().with_only_columns(table.c.tenant_id))
            assert await tx.all(statement) == []
        held = {"works": [claimed.work_id], "claims": [claimed.claim_id]}
        with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="claim is lost"):
            await tx.run(rows.HOLD, tenant_id=bench.tenant_id, **held)
        with pytest.raises(Internal):
            await tx.commit()
    assert await bench.complete(claimed)


async def test_eight_claimers_never_hold_the_same_work(bench: LaneBench) -> None:
    targets = [bench.item(uuid4() if n % 3 else None) for n in range(120)]
    await bench.enqueue(*targets)
    done: Counter[UUID] = Counter()
    held: set[UUID] = set()

    async def claimer() -> None:
        while sum(done.values()) < len(targets):
            for claimed in await bench.take(share=5):
                await _hold_and_complete(bench, claimed, held)
                done[claimed.target_id] += 1

    await asyncio.gather(*(claimer() for _ in range(8)))
    assert done == Counter({item.target_id: 1 for item in targets})


async def _hold_and_complete(bench: LaneBench, claimed: Claimed, held: set[UUID]) -> None:
    assert claimed.work_id not in held
    held.add(claimed.work_id)
    await asyncio.sleep(0)
    held.remove(claimed.work_id)
    assert await bench.complete(claimed)
