"""Runs as callers ask for them: started once, waited for, listed."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from services.chassis.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from services.executor.executions import Executions, Query
from services.executor.worker import Worker
from tests.integration.executor.execution_bench import (
    ISSUE,
    ExecutionBench,
    step,
)

Admin = psycopg.AsyncConnection[Any]


async def test_a_caller_may_wait_for_the_end(runs: ExecutionBench) -> None:
    await runs.want(step(path=ISSUE, query={"q": "${input.q}"}))
    async with runs.working():
        found = await runs.executions.run(runs.request(input={"q": "x y"}, wait_s=10))
    assert found.state == "success" and runs.box.calls[0].query == {"q": "x y"}
    assert (found.trigger_kind, found.trigger_id) == ("rpc", runs.principal_id)


async def test_what_a_caller_waits_for_runs_at_once_where_nothing_waits(
    runs: ExecutionBench,
) -> None:
    # Its worker never looks for work: all it runs is what it took.
    worker = Worker(runs.database, {runs.running.name: runs.running})
    asking = Executions(runs.database, runs.vault, runs.endings, worker)
    connector = await runs.want(step())
    found = await asking.run(runs.request(wait_s=20))
    assert found.state == "success"
    await runs.start(connector)
    found = await asking.run(runs.request(wait_s=0.3))
    assert found.state == "pending"


async def test_a_waiter_hears_of_an_end_in_its_own_process(
    runs: ExecutionBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.executor.executions.POLL_S", 60.0)
    await runs.want(step())
    async with runs.working():
        run = runs.executions.run(runs.request(wait_s=60))
        found = await asyncio.wait_for(run, 20)
    assert found.state == "success"


async def test_a_wait_ends_with_the_run_as_it_is(runs: ExecutionBench) -> None:
    await runs.want(step())
    found = await runs.executions.run(runs.request(wait_s=0.3))
    assert found.state == "pending"


async def test_a_waiter_hears_of_an_end_in_another_process(
    runs: ExecutionBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.executor.executions.POLL_S", 60.0)
    runs.running._endings = type(runs.endings)(runs.database)
    await runs.want(step())
    following = asyncio.create_task(runs.endings.follow())
    async with runs.working():
        run = runs.executions.run(runs.request(wait_s=60))
        found = await asyncio.wait_for(run, 20)
    following.cancel()
    assert found.state == "success"


async def test_a_request_id_starts_one_run(runs: ExecutionBench) -> None:
    await runs.want(step())
    request = runs.request(request_id=uuid4(), input={"a": 1})
    first, *others = await asyncio.gather(*(runs.executions.run(request) for _ in range(6)))
    assert {each.id for each in others} == {first.id}
    await runs.want(step(), active=False)
    assert (await runs.executions.run(request)).id == first.id
    with pytest.raises(FailedPrecondition) as refused:
        await runs.executions.run(runs.request(request_id=request.request_id, input={"a": 2}))
    assert refused.value.code == "REQUEST_ID_REUSED"
    runs.principal_id = uuid4()
    await runs.want(step())
    other = await runs.executions.run(runs.request(request_id=request.request_id, input={"a": 1}))
    assert other.id != first.id


async def test_a_refused_run_leaves_nothing(runs: ExecutionBench, admin: Admin) -> None:
    await runs.want(step(), active=False)
    with pytest.raises(FailedPrecondition) as inactive:
        await runs.executions.run(runs.request(request_id=uuid4()))
    assert inactive.value.code == "CONNECTOR_INACTIVE"
    with pytest.raises(NotFound):
        await runs.executions.run(runs.request(connector="other"))
    await admin.execute("UPDATE executor.tenants SET enabled = false")
    with pytest.raises(FailedPrecondition) as disabled:
        await runs.executions.run(runs.request())
    assert disabled.value.code == "TENANT_DISABLED"
    for table in ("executions", "work", "run_requests"):
        rows = await (await admin.execute(f"SELECT count(*) FROM executor.{table}")).fetchone()
        assert rows == (0,), table


async def test_input_and_wait_are_bounded(runs: ExecutionBench) -> None:
    await runs.want(step())
    with pytest.raises(InvalidArgument, match="input"):
        await runs.executions.run(runs.request(input={"a": "x" * 65536}))
    with pytest.raises(InvalidArgument, match="wait"):
        await runs.executions.run(runs.request(wait_s=61))


async def test_lists_page_by_page_the_newest_first(runs: ExecutionBench) -> None:
    connector = await runs.want(step())
    made = [await runs.start(connector) for _ in range(5)]
    seen: list[UUID] = []
    token = ""
    for _ in range(3):
        page = await runs.executions.list(Query(runs.tenant_id, page_size=2, page_token=token))
        seen += [each.id for each in page.executions]
        token = page.next_page_token
    assert seen == made[::-1] and token == ""
    first = await runs.executions.list(Query(runs.tenant_id, page_size=2))
    with pytest.raises(InvalidArgument, match="page_token"):
        await runs.executions.list(
            Query(runs.tenant_id, connector="c", page_token=first.next_page_token)
        )


async def test_lists_filter_by_connector_and_state(runs: ExecutionBench) -> None:
    done = await runs.run(step())
    waiting = await runs.start(await runs.want(step()))

    async def ids(**filters: str) -> list[UUID]:
        page = await runs.executions.list(Query(runs.tenant_id, **filters))  # type: ignore[arg-type]
        return [each.id for each in page.executions]

    assert await ids(state="success") == [done.id]
    assert await ids(state="pending", connector="c") == [waiting]
    assert await ids(connector="c") == [waiting, done.id]
    assert await ids(connector="x") == []


async def test_another_tenant_sees_nothing(
    runs: ExecutionBench, tenant_ids: tuple[UUID, UUID]
) -> None:
    found = await runs.run(step())
    with pytest.raises(NotFound):
        await runs.executions.get(tenant_ids[1], found.id)
    assert (await runs.executions.list(Query(tenant_ids[1]))).executions == ()
