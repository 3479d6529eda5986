"""Enqueueing against falling asleep, by named interleavings, at both levels.

Each part of the protocol in `services.executor.lanes` is proven twice by one interleaving: with the
part in place nothing is stranded, with it removed the same steps strand work, which is then there,
due, and found by nobody.

Level "lane": the lane is due and empty. Level "tenant": the lane sleeps already and the tenant lane
is still due, so that only the tenant lane is left to fall asleep.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from services.chassis.database import Statement, Transaction
from services.executor import lanes
from services.executor.lanes import Claimed, Turn
from services.executor.store import lanes as store
from tests.integration.executor.lane_bench import LaneBench

Admin = psycopg.AsyncConnection[Any]
Patch = pytest.MonkeyPatch
Finish = Callable[[Transaction, Claimed], Awaitable[bool]]
LEVELS = ("lane", "tenant")
GATE = 4711
WAIT_AT_GATE = f"WITH gate AS MATERIALIZED (SELECT pg_advisory_xact_lock({GATE}))"
NOTHING = Statement(text("SELECT 1 WHERE false"))


class Sleeper:
    """A worker at the end of its turn, its two transactions a step at a time."""

    def __init__(self, bench: LaneBench, turn: Turn) -> None:
        self._bench = bench
        self.turn = turn

    async def settle_lane(self) -> None:
        async with self._bench.database.tenant(self._bench.tenant_id) as tx:
            await lanes.settle_lanes(tx, self._bench.tenant_id, [self._bench.lane_id])

    async def settle_tenant(self) -> None:
        async with self._bench.database.tenant(self._bench.tenant_id) as tx:
            await lanes.settle_tenant(tx, self.turn)

    async def settle(self) -> None:
        await self.settle_lane()
        await self.settle_tenant()


async def _turn(bench: LaneBench) -> Turn:
    (turn,) = (await lanes.claim_tenants(bench.database, 1)).turns
    return turn


async def _about_to_sleep(bench: LaneBench, admin: Admin, level: str) -> Sleeper:
    """A lane without work whose worker is about to put the level's row to sleep."""
    await bench.enqueue(bench.item())
    await admin.execute("DELETE FROM executor.work")
    sleeper = Sleeper(bench, await _turn(bench))
    if level == "tenant":
        await sleeper.settle_lane()
    return sleeper


async def _strands(bench: LaneBench, admin: Admin) -> bool:
    """Whether waiting, due work is there which a worker does not find."""
    waiting = await admin.execute(
        "SELECT FROM executor.work WHERE claim_id IS NULL AND due_at <= now()"
    )
    assert waiting.rowcount == 1
    return not await bench.take()


@contextlib.asynccontextmanager
async def _gate_closed(admin: Admin) -> AsyncIterator[None]:
    await admin.execute("SELECT pg_advisory_lock(%s)", [GATE])
    try:
        yield
    finally:
        await admin.execute("SELECT pg_advisory_unlock(%s)", [GATE])


async def _blocked(admin: Admin) -> None:
    """Return once some statement of this database waits for a lock."""
    query = """
        SELECT FROM pg_stat_activity
        WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"""
    async with asyncio.timeout(10):
        while not (await admin.execute(query)).rowcount:
            await asyncio.sleep(0.01)


# The interleavings. Each ends with work waiting and due, and with every transaction committed.


async def _asleep_before_commit(bench: LaneBench, sleeper: Sleeper, _: Admin) -> None:
    """An enqueuer has done all but commit when the worker settles."""
    async with bench.database.tenant(bench.tenant_id) as tx:
        await lanes.enqueue(tx, bench.tenant_id, [bench.item()])
        await sleeper.settle()


async def _enqueued_before_lock(bench: LaneBench, sleeper: Sleeper, admin: Admin) -> None:
    """The worker's locking statement has begun, but waits at the gate, while somebody enqueues."""
    async with _gate_closed(admin):
        settling = asyncio.create_task(sleeper.settle())
        await _blocked(admin)
        await bench.enqueue(bench.item())
    await settling


async def _asleep_before_insert(bench: LaneBench, sleeper: Sleeper, admin: Admin) -> None:
    """An enqueuer waits at the gate, about to insert, while the worker settles."""
    async with _gate_closed(admin):
        enqueueing = asyncio.create_task(bench.enqueue(bench.item()))
        await _blocked(admin)
        await sleeper.settle()
    await enqueueing


async def _asleep_before_finish_commits(bench: LaneBench, level: str, finish: Finish) -> None:
    """A full lane gets room, all but committed, when the worker settles."""
    await bench.enqueue(bench.item(concurrency=1), bench.item(concurrency=1))
    sleeper = Sleeper(bench, await _turn(bench))
    (claimed,) = (await lanes.claim_work(bench.database, sleeper.turn, [bench.KIND], 5, 30)).items
    if level == "tenant":
        await sleeper.settle_lane()
    async with bench.database.tenant(bench.tenant_id) as tx:
        assert await finish(tx, claimed)
        await sleeper.settle()


# Foreign keys: an enqueuer's KEY SHARE.

KEYS = {"lane": "work_lane_fkey", "tenant": "work_tenant_lane_fkey"}


@pytest.mark.parametrize("level", LEVELS)
async def test_an_open_enqueuer_keeps_the_row_awake(
    bench: LaneBench, admin: Admin, level: str
) -> None:
    sleeper = await _about_to_sleep(bench, admin, level)
    await _asleep_before_commit(bench, sleeper, admin)
    assert not await _strands(bench, admin)


@pytest.mark.parametrize("level", LEVELS)
async def test_removing_the_foreign_key_strands_work(
    bench: LaneBench, admin: Admin, level: str
) -> None:
    await admin.execute(f"ALTER TABLE executor.work DROP CONSTRAINT {KEYS[level]}")
    sleeper = await _about_to_sleep(bench, admin, level)
    await _asleep_before_commit(bench, sleeper, admin)
    assert await _strands(bench, admin)


# FOR UPDATE, the one lock that keeps KEY SHARE out.

LOCKS = {"lane": "LOCK_LANES", "tenant": "LOCK_TENANT_LANE"}
ROWS = {
    "lane": "executor.lanes AS l WHERE tenant_id = :tenant_id AND lane_id = ANY(:lane_ids)",
    "tenant": "executor.tenant_lanes AS l WHERE tenant_id = :tenant_id",
}
IDS = {"lane": "l.lane_id", "tenant": "l.tenant_id"}


@pytest.mark.parametrize("level", LEVELS)
async def test_removing_for_update_strands_work(
    bench: LaneBench, admin: Admin, monkeypatch: Patch, level: str
) -> None:
    softer = f"SELECT {IDS[level]} FROM {ROWS[level]} FOR NO KEY UPDATE SKIP LOCKED"
    monkeypatch.setattr(store, LOCKS[level], Statement(text(softer)))
    sleeper = await _about_to_sleep(bench, admin, level)
    await _asleep_before_commit(bench, sleeper, admin)
    assert await _strands(bench, admin)


@pytest.mark.parametrize("level", LEVELS)
async def test_an_enqueuer_waits_for_a_row_that_falls_asleep(
    bench: LaneBench, admin: Admin, level: str
) -> None:
    sleeper = await _about_to_sleep(bench, admin, level)
    async with bench.database.tenant(bench.tenant_id) as tx:
        if level == "lane":
            await lanes.settle_lanes(tx, bench.tenant_id, [bench.lane_id])
        else:
            assert await lanes.settle_tenant(tx, sleeper.turn)
        enqueueing = asyncio.create_task(bench.enqueue(bench.item()))
        await _blocked(admin)
    await enqueueing
    await sleeper.settle_tenant()
    assert not await _strands(bench, admin)


async def test_an_enqueuer_does_not_wait_for_a_claim(bench: LaneBench, admin: Admin) -> None:
    await bench.enqueue(bench.item(delay_s=0.0))
    async with bench.database.tenant(bench.tenant_id) as tx:
        limits = {"kinds": [bench.KIND], "lanes": 1}
        assert await tx.all(store.LOCK_DUE_LANES, tenant_id=bench.tenant_id, **limits)
        async with asyncio.timeout(10):
            await bench.enqueue(bench.item())


# The look in a new statement, begun after the lock.

GATED_LOCKS = {
    level: f"SELECT {IDS[level]} FROM gate CROSS JOIN {ROWS[level]} FOR UPDATE OF l SKIP LOCKED"
    for level in LEVELS
}
RAISES = {"lane": "RAISE_LANES", "tenant": "RAISE_TENANT_LANE"}
EARLIEST = {
    "lane": "SELECT min(due_at) FROM executor.work AS w WHERE w.lane_id = l.lane_id",
    "tenant": "SELECT min(w.next_at) FROM executor.lanes AS w WHERE w.tenant_id = l.tenant_id",
}
LOCK_AND_RAISE = {
    "lane": f"""
        {WAIT_AT_GATE}, held AS MATERIALIZED ({GATED_LOCKS["lane"]})
        UPDATE executor.lanes AS l SET next_at = coalesce(({EARLIEST["lane"]}), 'infinity')
        FROM held WHERE l.lane_id = held.lane_id RETURNING l.lane_id""",
    "tenant": f"""
        {WAIT_AT_GATE}, held AS MATERIALIZED ({GATED_LOCKS["tenant"]})
        UPDATE executor.tenant_lanes AS l SET next_at = ({EARLIEST["tenant"]}),
            claim_id = NULL, lease_until = NULL
        FROM held WHERE l.tenant_id = held.tenant_id RETURNING l.tenant_id""",
}


@pytest.mark.parametrize("level", LEVELS)
async def test_what_is_enqueued_before_the_lock_is_seen_after_it(
    bench: LaneBench, admin: Admin, monkeypatch: Patch, level: str
) -> None:
    gated = Statement(text(f"{WAIT_AT_GATE} {GATED_LOCKS[level]}"))
    monkeypatch.setattr(store, LOCKS[level], gated)
    sleeper = await _about_to_sleep(bench, admin, level)
    await _enqueued_before_lock(bench, sleeper, admin)
    assert not await _strands(bench, admin)


@pytest.mark.parametrize("level", LEVELS)
async def test_removing_the_new_statement_strands_work(
    bench: LaneBench, admin: Admin, monkeypatch: Patch, level: str
) -> None:
    monkeypatch.setattr(store, LOCKS[level], Statement(text(LOCK_AND_RAISE[level])))
    monkeypatch.setattr(store, RAISES[level], NOTHING)
    sleeper = await _about_to_sleep(bench, admin, level)
    await _enqueued_before_lock(bench, sleeper, admin)
    assert await _strands(bench, admin)


# Inserting first, pulling forward then.

GATED_INSERT = Statement(
    text(
        f"{WAIT_AT_GATE} INSERT INTO executor.work (tenant_id, work_id, kind, lane_id, target_id,"
        " due_at, priority, attempt) SELECT :tenant_id, :work_id, :kind, :lane_id, :target_id,"
        " now() + :delay, :priority, 0 FROM gate"
    )
)
PULLS = {"lane": "PULL_LANE", "tenant": "PULL_TENANT_LANE"}
BEFORE_INSERT = {"lane": "ENSURE_LANE", "tenant": "ENSURE_TENANT_LANE"}


@pytest.mark.parametrize("level", LEVELS)
async def test_what_fell_asleep_before_the_insert_is_pulled_forward(
    bench: LaneBench, admin: Admin, monkeypatch: Patch, level: str
) -> None:
    sleeper = await _about_to_sleep(bench, admin, level)
    monkeypatch.setattr(store, "INSERT_WORK", GATED_INSERT)
    await _asleep_before_insert(bench, sleeper, admin)
    assert not await _strands(bench, admin)


@pytest.mark.parametrize("level", LEVELS)
async def test_pulling_forward_before_the_insert_strands_work(
    bench: LaneBench, admin: Admin, monkeypatch: Patch, level: str
) -> None:
    sleeper = await _about_to_sleep(bench, admin, level)
    monkeypatch.setattr(store, "INSERT_WORK", GATED_INSERT)
    monkeypatch.setattr(store, BEFORE_INSERT[level], getattr(store, PULLS[level]))
    monkeypatch.setattr(store, PULLS[level], NOTHING)
    await _asleep_before_insert(bench, sleeper, admin)
    assert await _strands(bench, admin)


@pytest.mark.parametrize("level", LEVELS)
async def test_removing_the_pull_strands_work(
    bench: LaneBench, admin: Admin, monkeypatch: Patch, level: str
) -> None:
    sleeper = await _about_to_sleep(bench, admin, level)
    await sleeper.settle()
    monkeypatch.setattr(store, PULLS[level], NOTHING)
    await bench.enqueue(bench.item())
    assert await _strands(bench, admin)


# KEY SHARE before work becomes due without an insert.

KEEPS = {"lane": "KEEP_LANE", "tenant": "KEEP_TENANT_LANE"}
FINISHES: dict[str, Finish] = {
    "complete": lanes.complete,
    "postpone": lambda tx, claimed: lanes.postpone(tx, claimed, 60),
}


@pytest.mark.parametrize("finish", FINISHES)
@pytest.mark.parametrize("level", LEVELS)
async def test_room_in_a_full_lane_is_seen(
    bench: LaneBench, admin: Admin, level: str, finish: str
) -> None:
    await _asleep_before_finish_commits(bench, level, FINISHES[finish])
    assert not await _strands(bench, admin)


@pytest.mark.parametrize("finish", FINISHES)
@pytest.mark.parametrize("level", LEVELS)
async def test_removing_key_share_strands_work(
    bench: LaneBench, admin: Admin, monkeypatch: Patch, level: str, finish: str
) -> None:
    monkeypatch.setattr(store, KEEPS[level], NOTHING)
    await _asleep_before_finish_commits(bench, level, FINISHES[finish])
    assert await _strands(bench, admin)


WAKES = {"lane": "WAKE_LANE", "tenant": "WAKE_TENANT_LANE"}


@pytest.mark.parametrize("level", LEVELS)
async def test_removing_the_wake_strands_work(
    bench: LaneBench, admin: Admin, monkeypatch: Patch, level: str
) -> None:
    await bench.enqueue(bench.item(concurrency=1), bench.item(concurrency=1))
    (claimed,) = await bench.take()
    monkeypatch.setattr(store, WAKES[level], NOTHING)
    assert await bench.complete(claimed)
    assert await _strands(bench, admin)
