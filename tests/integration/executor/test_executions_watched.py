"""Runs as those see them who watch: every change, whichever process makes it, and the end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from services.chassis.errors import NotFound, ResourceExhausted
from services.executor.executions import watching
from services.executor.executions.watching import Changes
from services.executor.store.executions import CHANGED_CHANNEL, Execution
from services.sandbox.faults import Fault
from tests.integration.executor.execution_bench import ExecutionBench, comment, step

Admin = psycopg.AsyncConnection[Any]


def stands(found: Execution) -> tuple[str, list[str]]:
    return found.state, [each.state for each in found.steps]


@pytest.fixture
def never_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever watches hears of a change, or misses it."""
    monkeypatch.setattr(watching, "POLL_S", 60.0)


@asynccontextmanager
async def following(runs: ExecutionBench) -> AsyncIterator[None]:
    """Notices of other processes arrive inside the block."""
    task = asyncio.create_task(runs.changes.follow())
    try:
        yield
    finally:
        task.cancel()


@pytest.mark.usefixtures("never_polls")
async def test_changes_made_by_another_process_are_seen_to_the_end(runs: ExecutionBench) -> None:
    # What the worker tells its own process goes nowhere: it is another one's.
    runs.running._changes = Changes(runs.database)
    runs.box.faults.add(Fault(path="*", kind="slow", delay_s=0.3, times=2))
    execution_id = await runs.start(await runs.want(step(), comment()))
    seen: list[Execution] = []
    watch = runs.watches.watch(runs.tenant_id, execution_id)
    async with following(runs), asyncio.timeout(20), aclosing(watch) as changes:
        seen.append(await anext(changes))
        async with runs.working():
            seen += [each async for each in changes]
    assert stands(seen[0]) == ("pending", [])
    calling = [each for each in map(stands, seen) if each[1][-1:] == ["running"]]
    assert calling == [("running", ["running"]), ("running", ["success", "running"])]
    assert stands(seen[-1]) == ("success", ["success", "success"])
    assert seen[-1] == await runs.executions.get(runs.tenant_id, execution_id)
    assert len(set(map(repr, seen))) == len(seen)


async def test_without_notices_the_poll_sees_it(
    runs: ExecutionBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "POLL_S", 0.05)
    runs.running._changes = Changes(runs.database)
    execution_id = await runs.start(await runs.want(step()))
    async with runs.working(), asyncio.timeout(20):
        seen = [each async for each in runs.watches.watch(runs.tenant_id, execution_id)]
    assert seen[-1].state == "success"


async def test_what_has_ended_is_shown_once(runs: ExecutionBench) -> None:
    found = await runs.run(step())
    assert [each async for each in runs.watches.watch(runs.tenant_id, found.id)] == [found]


async def test_what_nobody_watches_is_told_of_at_its_end_alone(
    runs: ExecutionBench, admin: Admin
) -> None:
    told: list[str] = []
    admin.add_notify_handler(lambda notice: told.append(notice.payload))
    await admin.execute(f"LISTEN {CHANGED_CHANNEL}")
    found = await runs.run(step(), step("next"))
    await admin.execute("SELECT 1")
    assert told == [str(found.id)]


async def test_who_goes_is_forgotten(runs: ExecutionBench) -> None:
    execution_id = await runs.start(await runs.want(step()))
    async with aclosing(runs.watches.watch(runs.tenant_id, execution_id)) as changes:
        await anext(changes)
        waiting = asyncio.create_task(anext(changes))
        await asyncio.sleep(0)
        assert runs.changes.waiters() == 1
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert runs.changes.waiters() == 0


async def test_only_so_many_watch_at_once(
    runs: ExecutionBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "MOST_WATCHES", 1)
    execution_id = await runs.start(await runs.want(step()))
    async with aclosing(runs.watches.watch(runs.tenant_id, execution_id)) as changes:
        await anext(changes)
        with pytest.raises(ResourceExhausted):
            await anext(runs.watches.watch(runs.tenant_id, execution_id))
    async with aclosing(runs.watches.watch(runs.tenant_id, execution_id)) as changes:
        await anext(changes)


async def test_a_watch_ends_in_time(runs: ExecutionBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "LONGEST_WATCH_S", 0.2)
    execution_id = await runs.start(await runs.want(step()))
    async with asyncio.timeout(20):
        seen = [each async for each in runs.watches.watch(runs.tenant_id, execution_id)]
    assert [each.state for each in seen] == ["pending"]


async def test_nobody_watches_what_is_not_theirs(
    runs: ExecutionBench, tenant_ids: tuple[UUID, UUID]
) -> None:
    execution_id = await runs.start(await runs.want(step()))
    for tenant_id, name in ((tenant_ids[1], execution_id), (runs.tenant_id, uuid4())):
        with pytest.raises(NotFound):
            await anext(runs.watches.watch(tenant_id, name))
