"""Runs that are ended before their time: cancelled, or past the time their connector gives them."""

import asyncio
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from services.chassis.errors import NotFound
from services.executor.audit.outbox import Doer
from services.executor.engine.work import ClaimLost
from services.executor.engine.worker import Worker
from services.executor.executions.runs import Executions, Query
from services.executor.executions.watching import Changes
from services.executor.store.executions import Execution
from services.sandbox.faults import Fault
from tests.integration.executor.execution_bench import ExecutionBench, NoRoom, comment, step, until

Admin = psycopg.AsyncConnection[Any]
DOER = Doer(uuid4(), "user", "Ada")
LATER = {"max_attempts": 2, "base": "600s", "cap": "600s"}


async def work_left(admin: Admin) -> int:
    row = await (await admin.execute("SELECT count(*) FROM executor.work")).fetchone()
    assert row is not None
    return int(row[0])


def reasons(found: Execution) -> list[tuple[str, str]]:
    return [(each.state, each.failure_reason) for each in found.steps]


async def test_what_waits_for_a_worker_ends_at_once(runs: ExecutionBench, admin: Admin) -> None:
    execution_id = await runs.start(await runs.want(step()))
    found = await runs.executions.cancel(runs.tenant_id, execution_id, DOER)
    assert (found.state, found.failure_reason, found.steps) == ("cancelled", "CANCELLED", ())
    assert found.ended_at is not None and await work_left(admin) == 0
    assert await runs.executions.cancel(runs.tenant_id, execution_id, DOER) == found
    async with runs.working():
        assert (await runs.executions.run(runs.request(wait_s=10))).state == "success"
    assert len(runs.box.calls) == 1


async def test_what_waits_for_its_next_try_ends_at_once_and_says_why_it_waited(
    runs: ExecutionBench, admin: Admin
) -> None:
    runs.box.faults.add(Fault(path="*", kind="status", status=500, times=1))
    execution_id = await runs.start(await runs.want(step(retry=LATER)))
    async with runs.working():
        await until(runs, execution_id, lambda each: each.steps and each.steps[0].failure_reason)
        found = await runs.executions.cancel(runs.tenant_id, execution_id, DOER)
    assert (found.state, reasons(found)) == ("cancelled", [("failed", "TRANSIENT")])
    assert await work_left(admin) == 0


@pytest.mark.parametrize(
    ("under_way", "reason"),
    [(step(), "CANCELLED"), (comment(), "OUTCOME_UNKNOWN")],
    ids=["safe", "unsafe"],
)
async def test_what_runs_is_ended_by_its_worker_and_says_what_nobody_knows(
    under_way: dict[str, Any], reason: str, runs: ExecutionBench, admin: Admin
) -> None:
    runs.box.faults.add(Fault(path="*", kind="hang", times=1))
    execution_id = await runs.start(await runs.want(under_way, step("next")))
    async with runs.working():
        await until(runs, execution_id, lambda _: runs.box.calls)
        found = await runs.executions.cancel(runs.tenant_id, execution_id, DOER)
    assert (found.state, found.failure_reason) == ("cancelled", "CANCELLED")
    assert reasons(found) == [("failed", reason)]
    assert ("outcome is unknown" in found.failure_message) is (reason == "OUTCOME_UNKNOWN")
    assert found.failed_steps == 1 and await work_left(admin) == 0


async def test_one_who_waits_hears_of_a_cancel(runs: ExecutionBench) -> None:
    await runs.want(step())
    waiting = asyncio.create_task(runs.executions.run(runs.request(wait_s=60)))
    async with asyncio.timeout(10):
        while not (listed := (await runs.executions.list(Query(runs.tenant_id))).executions):
            await asyncio.sleep(0.01)
    # In another process than the one that serves the waiter.
    following = asyncio.create_task(runs.changes.follow())
    other = Executions(runs.database, runs.vault, Changes(runs.database), NoRoom())
    await other.cancel(runs.tenant_id, listed[0].id, DOER)
    found = await asyncio.wait_for(waiting, 20)
    following.cancel()
    assert found.state == "cancelled"


async def test_what_has_ended_stays_as_it_is(runs: ExecutionBench) -> None:
    found = await runs.run(step())
    assert await runs.executions.cancel(runs.tenant_id, found.id, DOER) == found


async def test_nobody_cancels_what_is_not_theirs(
    runs: ExecutionBench, tenant_ids: tuple[Any, Any]
) -> None:
    execution_id = await runs.start(await runs.want(step()))
    for tenant_id, name in ((tenant_ids[1], execution_id), (runs.tenant_id, uuid4())):
        with pytest.raises(NotFound):
            await runs.executions.cancel(tenant_id, name, DOER)
    assert (await runs.executions.get(runs.tenant_id, execution_id)).state == "pending"


async def test_a_worker_that_lost_a_cancelled_run_records_nothing(
    runs: ExecutionBench, admin: Admin
) -> None:
    execution_id = await runs.start(await runs.want(comment()))
    runs.box.faults.add(Fault(path="*", kind="slow", delay_s=0.3, times=1))
    running = asyncio.create_task(runs.work(await runs.claim()))
    await until(runs, execution_id, lambda _: runs.box.calls)
    # Its lease ends, as if it had died.
    await admin.execute("UPDATE executor.work SET claim_id = NULL, lease_until = NULL")
    found = await runs.executions.cancel(runs.tenant_id, execution_id, DOER)
    assert (found.state, reasons(found)) == ("cancelled", [("failed", "OUTCOME_UNKNOWN")])
    with pytest.raises(ClaimLost):
        await running
    assert await runs.executions.get(runs.tenant_id, execution_id) == found


@pytest.mark.parametrize("taken", [True, False], ids=["taken", "queued"])
async def test_a_run_ends_in_the_time_its_connector_gives_it(
    taken: bool,
    runs: ExecutionBench,
) -> None:
    await runs.want(step("first"), comment(), whole={"timeout": "0.8s"})
    runs.box.faults.add(Fault(path="*/comments", kind="hang", times=9))
    worker = Worker(runs.database, {runs.running.name: runs.running}, runs.recorder)
    asking = Executions(runs.database, runs.vault, runs.changes, worker)
    if taken:
        found = await asking.run(runs.request(wait_s=20))
    else:
        async with runs.working():
            found = await runs.executions.run(runs.request(wait_s=20))
    assert (found.state, found.failure_reason) == ("timeout", "DEADLINE_EXCEEDED")
    assert reasons(found) == [("success", ""), ("failed", "OUTCOME_UNKNOWN")]
    assert "step say" in found.failure_message


async def test_a_run_that_waits_ends_in_the_time_its_connector_gives_it(
    runs: ExecutionBench,
) -> None:
    runs.box.faults.add(Fault(path="*", kind="status", status=500, times=9))
    whole = {"timeout": "0.5s"}
    found = await runs.run(step(retry=LATER), whole=whole)
    assert (found.state, found.failure_reason) == ("timeout", "DEADLINE_EXCEEDED")
    assert reasons(found) == [("timeout", "TRANSIENT")]
