"""Records that share transactions: what is wrong with one is no other's business."""

import asyncio
import random
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import text

from services.chassis.database import Bound, Database, Statement
from services.chassis.errors import InvalidArgument
from services.executor.engine.recorder import Recorder
from services.executor.engine.work import Breaker, Claimed, ClaimLost, Done, Failed, Later, Outcome
from tests.integration.executor.lane_bench import LaneBench
from tests.integration.executor.test_ordering import deadlocks

Admin = psycopg.AsyncConnection[Any]
TENANTS: Final = 20
ITEMS: Final = 200
POISON: Final = Statement(text("SELECT 1 / 0"))
NOTHING: Final = Statement(text("SELECT 1"))


async def claimed_of_many(database: Database, tenants: int, items: int) -> list[Claimed]:
    """So many claimed items, evenly of so many tenants."""
    benches = [LaneBench(database) for _ in range(tenants)]
    for bench in benches:
        await bench.enqueue(*(bench.item(concurrency=items) for _ in range(items // tenants)))
    claimed: list[Claimed] = []
    while len(claimed) < items:
        claimed += await benches[0].take(share=items)
    return claimed


async def recorded(
    recorder: Recorder, outcomes: list[tuple[Claimed, Outcome]]
) -> dict[UUID, BaseException]:
    """Record all at once; the errors by work."""
    answers = await asyncio.gather(
        *(recorder.record(*each) for each in outcomes), return_exceptions=True
    )
    return {
        claimed.work_id: answer
        for (claimed, _), answer in zip(outcomes, answers, strict=True)
        if isinstance(answer, BaseException)
    }


async def left(admin: Admin) -> set[UUID]:
    """The work that is still there."""
    found = await admin.execute("SELECT work_id FROM executor.work")
    return {row[0] for row in await found.fetchall()}


async def test_a_bad_statement_fails_its_own_item_alone(
    executor_database: Database, admin: Admin
) -> None:
    claimed = await claimed_of_many(executor_database, TENANTS, ITEMS)
    bad = claimed[ITEMS // 2]
    errors = await recorded(
        Recorder(executor_database),
        [(each, Done(record=[Bound(POISON if each is bad else NOTHING)])) for each in claimed],
    )
    assert list(errors) == [bad.work_id]
    assert isinstance(errors[bad.work_id], InvalidArgument)
    assert await left(admin) == {bad.work_id}
    await Recorder(executor_database).record(bad, Done())
    assert await left(admin) == set()


async def test_lost_claims_are_told_to_those_who_lost_them_alone(
    executor_database: Database, admin: Admin
) -> None:
    claimed = await claimed_of_many(executor_database, TENANTS, ITEMS)
    lost = {each.work_id for each in claimed[:: ITEMS // 3]}
    await admin.execute(
        "UPDATE executor.work SET claim_id = %s WHERE work_id = ANY(%s)", [uuid4(), list(lost)]
    )
    errors = await recorded(Recorder(executor_database), [(each, Done()) for each in claimed])
    assert {type(error) for error in errors.values()} == {ClaimLost}
    assert set(errors) == lost
    assert await left(admin) == lost


async def test_of_a_bad_item_nothing_is_kept(bench: LaneBench, admin: Admin) -> None:
    await bench.enqueue(bench.item())
    (claimed,) = await bench.take()
    follow_up = bench.item()
    pause = Statement(text("UPDATE executor.lanes SET pause_reason = 'half done'"))
    with pytest.raises(InvalidArgument):
        await bench.recorder.record(claimed, Done(record=[Bound(pause), Bound(POISON)]))
    await bench.enqueue(follow_up)
    assert [each.target_id for each in await bench.take()] == [follow_up.target_id]
    assert await left(admin) >= {claimed.work_id}


async def test_a_cancelled_waiter_changes_nothing(
    executor_database: Database, admin: Admin
) -> None:
    claimed = await claimed_of_many(executor_database, 4, 40)
    recorder = Recorder(executor_database)
    waiters = [asyncio.create_task(recorder.record(each, Done())) for each in claimed]
    await asyncio.sleep(0)
    for waiter in waiters[::2]:
        waiter.cancel()
    answers = await asyncio.gather(*waiters, return_exceptions=True)
    assert answers[1::2] == [None] * 20
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::2])
    async with asyncio.timeout(10):
        while await left(admin):
            await asyncio.sleep(0.01)


async def test_each_gets_the_rows_of_its_own_statements(executor_database: Database) -> None:
    claimed = await claimed_of_many(executor_database, 4, 40)
    said = Statement(text("SELECT CAST(:word AS text) AS word"))
    told: dict[UUID, list[str]] = {}

    def outcome(each: Claimed, count: int) -> Outcome:
        words = [f"{each.work_id} {number}" for number in range(count)]
        return Done(
            record=[Bound(said, {"word": word}) for word in words],
            told=lambda rows: told.update({each.work_id: [row.word for (row,) in rows]}),
        )

    outcomes = [(each, outcome(each, number % 3)) for number, each in enumerate(claimed)]
    assert await recorded(Recorder(executor_database), outcomes) == {}
    assert told == {
        each.work_id: [f"{each.work_id} {at}" for at in range(number % 3)]
        for number, each in enumerate(claimed)
    }


async def test_two_recorders_on_the_same_lanes_meet_no_deadlock(
    executor_database: Database, admin: Admin
) -> None:
    """Each with some of every key, breaker and tenant, in an order of its own."""
    benches = [LaneBench(executor_database) for _ in range(3)]
    shapes: list[dict[str, Any]] = [
        {"ordering": "key"},
        {"breaker": Breaker(threshold=10_000, reset_s=60.0)},
        {},
    ]
    lanes_of = {bench: [uuid4() for _ in shapes] for bench in benches}
    for bench, lane_ids in lanes_of.items():
        await bench.enqueue(
            *(
                bench.item(lane_id, key=str(number), concurrency=100, retry_s=(0.0,) * 99, **shape)
                for lane_id, shape in zip(lane_ids, shapes, strict=True)
                for number in range(30)
            )
        )
    recorders, chance = (Recorder(executor_database), Recorder(executor_database)), random.Random(3)
    rounds = 0
    while await left(admin):
        rounds += 1
        assert rounds < 60
        claimed = await benches[0].take(share=400)
        chance.shuffle(claimed)
        outcomes = [
            (each, chance.choice([Done(worked=True), Failed(worked=False), Later(delay_s=0)]))
            for each in claimed
        ]
        errors = await asyncio.gather(
            *(recorded(recorder, outcomes[at::2]) for at, recorder in enumerate(recorders))
        )
        assert errors == [{}, {}]
    assert await deadlocks(admin) == 0
