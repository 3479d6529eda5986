"""Enqueueing against falling asleep, by named interleavings, at both levels.

Each part of the protocol in `services.executor.engine.lanes` is proven twice by one interleaving: with the
part in place nothing is stranded, with it removed the same steps strand work, which is then there,
due, and found by nobody.

Level "lane": the lane is due and empty. Level "tenant": the lane sleeps already and the tenant lane
is still due, so that only the tenant lane is left to fall asleep.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text

from services.chassis.database import Statement, Transaction
from services.executor.engine import lanes, steering, turns
from services.executor.engine.steering import Limits
from services.executor.engine.turns import Taken, Turn
from services.executor.engine.work import Breaker, Claimed, Done, LanePolicy, Later, Outcome
from services.executor.store import lanes as store
from services.executor.store import work as rows
from tests.integration.executor.lane_bench import LaneBench, pass_time

Admin = psycopg.AsyncConnection[Any]
Patch = pytest.MonkeyPatch
LEVELS = ("lane", "tenant")
# A turn that took something, so that its tenant need not rest.
AWAKE = Taken(
    items=(Claimed(UUID(int=0), UUID(int=0), "", UUID(int=0), UUID(int=0), 1, UUID(int=0)),)
)
GATE = 4711
WAIT_AT_GATE = f"WITH gate AS MATERIALIZED (SELECT pg_advisory_xact_lock({GATE}))"
NOTHING = Statement(text("SELECT 1 WHERE false"))


class Sleeper:
    """A worker at the end of its turn, its two transactions a step at a time."""

    def __init__(self, bench: LaneBench, turn: Turn) -> None:
        self._bench = bench
        self.turn = turn

    async def settle_lane(self) -> None:
        async with self._bench.database.across() as tx:
            await turns.settle_lanes(tx, {self._bench.tenant_id: [self._bench.lane_id]})

    async def settle_tenant(self) -> None:
        async with self._bench.database.across() as tx:
            busy, _ = await turns.settle_tenants(tx, {self.turn: AWAKE})
        if busy:
            async with self._bench.database.across() as tx:
                await turns.turn_tenants(tx, busy)

    async def settle(self) -> None:
        await self.settle_lane()
        await self.settle_tenant()


async def _about_to_sleep(bench: LaneBench, admin: Admin, level: str) -> Sleeper:
    """A lane without work whose worker is about to put the level's row to sleep."""
    await bench.enqueue(bench.item())
    await admin.execute("DELETE FROM executor.work")
    sleeper = Sleeper(bench, await bench.turn())
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


async def _asleep_before_finish_commits(bench: LaneBench, level: str, outcome: Outcome) -> None:
    """A full lane gets room, all but committed, when the worker settles."""
    await bench.enqueue(bench.item(concurrency=1), bench.item(concurrency=1))
    sleeper = Sleeper(bench, await bench.turn())
    (claimed,) = (await bench.claim(sleeper.turn)).items
    if level == "tenant":
        await sleeper.settle_lane()
    async with bench.database.across() as tx:
        await bench.end(tx, (claimed, outcome))
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
IDS = {"lane": "l.lane_id, l.owner", "tenant": "l.tenant_id"}


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
    async with bench.database.across() as tx:
        if level == "lane":
            await turns.settle_lanes(tx, {bench.tenant_id: [bench.lane_id]})
        else:
            assert await turns.settle_tenants(tx, {sleeper.turn: AWAKE}) == ({}, True)
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
        FROM held WHERE l.lane_id = held.lane_id RETURNING l.lane_id, l.owner""",
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
        " blocked, due_at, priority, attempt) SELECT :tenant_id, item.work, item.kind, item.lane,"
        " item.target, false, now(), 0, 0 FROM gate, unnest(CAST(:works AS uuid[]),"
        " CAST(:kinds AS text[]), CAST(:lanes AS uuid[]), CAST(:targets AS uuid[]))"
        " AS item (work, kind, lane, target)"
    )
)
PULLS = {"lane": "PULL_LANE", "tenant": "PULL_TENANT_LANE"}
BEFORE_INSERT = {"lane": "ENSURE_LANE", "tenant": "ENSURE_TENANT_LANE"}


@pytest.mark.parametrize("level", LEVELS)
async def test_what_fell_asleep_before_the_insert_is_pulled_forward(
    bench: LaneBench, admin: Admin, monkeypatch: Patch, level: str
) -> None:
    sleeper = await _about_to_sleep(bench, admin, level)
    monkeypatch.setattr(rows, "INSERT", GATED_INSERT)
    await _asleep_before_insert(bench, sleeper, admin)
    assert not await _strands(bench, admin)


@pytest.mark.parametrize("level", LEVELS)
async def test_pulling_forward_before_the_insert_strands_work(
    bench: LaneBench, admin: Admin, monkeypatch: Patch, level: str
) -> None:
    sleeper = await _about_to_sleep(bench, admin, level)
    monkeypatch.setattr(rows, "INSERT", GATED_INSERT)
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

KEEPS = {"lane": "KEEP_LANES", "tenant": "KEEP_TENANT_LANE"}
FINISHES: dict[str, Outcome] = {"complete": Done(), "postpone": Later(delay_s=60)}


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


WAKES = {"lane": "WAKE_LANES", "tenant": "WAKE_TENANT_LANE"}


@pytest.mark.parametrize("level", LEVELS)
async def test_removing_the_wake_strands_work(
    bench: LaneBench, admin: Admin, monkeypatch: Patch, level: str
) -> None:
    await bench.enqueue(bench.item(concurrency=1), bench.item(concurrency=1))
    (claimed,) = await bench.take()
    monkeypatch.setattr(store, WAKES[level], NOTHING)
    assert await bench.complete(claimed)
    assert await _strands(bench, admin)


# What lets waiting work go on without any of it ending: each is a change (all but committed when the
# worker settles), a lane that waits for it, and the statements the change must not be without.


@dataclass(frozen=True)
class Release:
    """A lane that is `held` up with its worker about to settle, and what lets it `go`."""

    held: Callable[[LaneBench], Awaitable[Sleeper]]
    go: Callable[[LaneBench, Transaction], Awaitable[object]]


async def _paused(bench: LaneBench) -> Sleeper:
    await bench.enqueue(bench.item())
    sleeper = Sleeper(bench, await bench.turn())
    async with bench.database.tenant(bench.tenant_id) as tx:
        await steering.pause(tx, bench.tenant_id, bench.lane_id, "a test")
    return sleeper


async def _full(bench: LaneBench) -> Sleeper:
    await bench.enqueue(bench.item(concurrency=1), bench.item(concurrency=1))
    sleeper = Sleeper(bench, await bench.turn())
    assert len((await bench.claim(sleeper.turn)).items) == 1
    return sleeper


async def _behind_the_first(bench: LaneBench) -> Sleeper:
    first = replace(bench.item(ordering="lane", delay_s=3600), target_id=FIRST)
    await bench.enqueue(first)
    await bench.enqueue(bench.item(ordering="lane"))
    return Sleeper(bench, await bench.turn())


async def _resume(bench: LaneBench, tx: Transaction) -> None:
    await steering.resume(tx, bench.tenant_id, bench.lane_id)


async def _widen(bench: LaneBench, tx: Transaction) -> None:
    policies = {bench.lane_id: LanePolicy(concurrency=2)}
    await steering.shape(tx, bench.tenant_id, bench.KIND, policies)


async def _cancel_first(bench: LaneBench, tx: Transaction) -> None:
    assert await lanes.cancel(tx, bench.tenant_id, FIRST)


FIRST = UUID(int=1)
RELEASES = {
    "resume": Release(_paused, _resume),
    "widen": Release(_full, _widen),
    "cancel": Release(_behind_the_first, _cancel_first),
}
LOWERS = {
    ("resume", "lane"): "PULL_LANE",
    ("resume", "tenant"): "PULL_TENANT_LANE",
    ("widen", "lane"): "HASTEN_LANES",
    ("widen", "tenant"): "PULL_TENANT_LANE",
    ("cancel", "lane"): "WAKE_LANES",
    ("cancel", "tenant"): "WAKE_TENANT_LANE",
}


async def _asleep_before_release_commits(bench: LaneBench, release: Release, level: str) -> None:
    sleeper = await release.held(bench)
    if level == "tenant":
        await sleeper.settle_lane()
    async with bench.database.tenant(bench.tenant_id) as tx:
        await release.go(bench, tx)
        await sleeper.settle()


async def _released_after_sleep(bench: LaneBench, release: Release) -> None:
    await (await release.held(bench)).settle()
    async with bench.database.tenant(bench.tenant_id) as tx:
        await release.go(bench, tx)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("level", LEVELS)
async def test_what_is_released_while_its_worker_settles_goes_on(
    bench: LaneBench, admin: Admin, level: str, release: str
) -> None:
    await _asleep_before_release_commits(bench, RELEASES[release], level)
    assert await _finds_one(bench, admin)


async def test_a_cancel_that_does_not_keep_its_tenant_awake_strands_the_next(
    bench: LaneBench, admin: Admin, monkeypatch: Patch
) -> None:
    """The others change the lane twice, so that its foreign key is checked and does the same."""
    monkeypatch.setattr(store, KEEPS["tenant"], NOTHING)
    await _asleep_before_release_commits(bench, RELEASES["cancel"], "tenant")
    assert not await _finds_one(bench, admin)


@pytest.mark.parametrize("release", RELEASES)
async def test_what_is_released_after_its_lane_fell_asleep_goes_on(
    bench: LaneBench, admin: Admin, release: str
) -> None:
    await _released_after_sleep(bench, RELEASES[release])
    assert await _finds_one(bench, admin)


@pytest.mark.parametrize(("release", "level"), LOWERS)
async def test_what_is_released_without_the_pull_is_stranded(
    bench: LaneBench, admin: Admin, monkeypatch: Patch, release: str, level: str
) -> None:
    monkeypatch.setattr(store, LOWERS[(release, level)], NOTHING)
    await _released_after_sleep(bench, RELEASES[release])
    assert not await _finds_one(bench, admin)


async def test_a_cancel_that_unblocks_nobody_strands_the_next(
    bench: LaneBench, admin: Admin, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(rows, "UNBLOCK", NOTHING)
    await _released_after_sleep(bench, RELEASES["cancel"])
    assert not await _finds_one(bench, admin)


async def _finds_one(bench: LaneBench, admin: Admin) -> bool:
    """Whether a worker finds the one piece of work that is due."""
    return not await _strands(bench, admin)


# Stopping what somebody enqueues to: once it may go on, all of it is found.

TRIPS = Breaker(threshold=1, reset_s=60.0)


async def test_what_is_enqueued_while_its_lane_is_being_paused_is_found_when_it_resumes(
    bench: LaneBench, admin: Admin
) -> None:
    sleeper = await _about_to_sleep(bench, admin, "lane")
    async with bench.database.tenant(bench.tenant_id) as tx:
        await steering.pause(tx, bench.tenant_id, bench.lane_id, "a test")
        enqueueing = asyncio.create_task(bench.enqueue(bench.item()))
        await asyncio.wait([enqueueing], timeout=0.2)
        await sleeper.settle_lane()
    await asyncio.gather(enqueueing, sleeper.settle_tenant())
    assert await bench.take() == []
    async with bench.database.tenant(bench.tenant_id) as tx:
        await _resume(bench, tx)
    assert await _finds_one(bench, admin)


@pytest.mark.parametrize("level", ["", *LEVELS])
async def test_what_is_enqueued_while_its_breaker_opens_is_found_when_its_time_is_over(
    bench: LaneBench, admin: Admin, monkeypatch: Patch, level: str
) -> None:
    """Without the pull of a level, nobody looks there again."""
    await bench.enqueue(bench.item(breaker=TRIPS))
    sleeper = Sleeper(bench, await bench.turn())
    (claimed,) = (await bench.claim(sleeper.turn)).items
    async with bench.database.across() as tx:
        await bench.end(tx, (claimed, Done(worked=False)))
        await sleeper.settle()
    await pass_time(admin, 31)
    assert await bench.take() == []
    if level:
        monkeypatch.setattr(store, PULLS[level], NOTHING)
    await bench.enqueue(bench.item())
    assert await bench.take() == []
    await pass_time(admin, TRIPS.reset_s)
    assert await _finds_one(bench, admin) is (level == "")


async def test_what_is_enqueued_to_a_paused_tenant_is_found_when_it_goes_on(
    bench: LaneBench, admin: Admin
) -> None:
    """A paused tenant's row is left as it is, so that there is no pull to remove."""
    sleeper = await _about_to_sleep(bench, admin, "lane")
    async with bench.database.tenant(bench.tenant_id) as tx:
        await steering.govern(tx, bench.tenant_id, Limits(paused=True))
        enqueueing = asyncio.create_task(bench.enqueue(bench.item()))
        await asyncio.wait([enqueueing], timeout=0.2)
        await sleeper.settle_lane()
    await asyncio.gather(enqueueing, sleeper.settle_tenant())
    assert await bench.take() == []
    async with bench.database.tenant(bench.tenant_id) as tx:
        await steering.govern(tx, bench.tenant_id, Limits())
    assert await _finds_one(bench, admin)
