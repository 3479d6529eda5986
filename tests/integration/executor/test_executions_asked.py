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
from services.executor.engine.worker import Worker
from services.executor.executions.runs import Executions, Query
from services.sandbox.faults import Fault
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
    worker = Worker(runs.database, {runs.running.name: runs.running}, runs.recorder)
    asking = Executions(runs.database, runs.vault, runs.changes, worker)
    connector = await runs.want(step())
    found = await asking.run(runs.request(wait_s=20))
    assert found.state == "success"
    await runs.start(connector)
    found = await asking.run(runs.request(wait_s=0.3))
    assert found.state == "pending"


async def test_a_waiter_hears_of_an_end_in_its_own_process(
    runs: ExecutionBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.executor.executions.runs.POLL_S", 60.0)
    await runs.want(step())
    async with runs.working():
        run = runs.executions.run(runs.request(wait_s=60))
        found = await asyncio.wait_for(run, 20)
    assert found.state == "success"


async def test_who_is_told_of_a_run_before_its_end_is_told_what_is_on_the_disk(
    runs: ExecutionBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[bool] = []
    flush = runs.database.flush

    async def flushing() -> None:
        await flush()
        flushed.append(True)

    monkeypatch.setattr(runs.database, "flush", flushing)
    await runs.want(step())
    found = await runs.executions.run(runs.request(wait_s=0.1))
    assert found.state == "pending" and flushed == [True]
    async with runs.working():
        found = await runs.executions.run(runs.request(wait_s=20))
    assert found.ended and flushed == [True]


async def test_a_call_that_lasts_is_seen_under_way_and_a_short_one_has_its_times(
    runs: ExecutionBench,
) -> None:
    worker = Worker(runs.database, {runs.running.name: runs.running}, runs.recorder)
    asking = Executions(runs.database, runs.vault, runs.changes, worker)
    await runs.want(step())
    short = await asking.run(runs.request(wait_s=20))
    assert short.state == "success" and short.started_at and short.ended_at
    assert short.created_at <= short.started_at < short.ended_at
    runs.box.faults.add(Fault(path="*", kind="slow", delay_s=1.0, times=1))
    lasting = asyncio.create_task(asking.run(runs.request(wait_s=20)))
    async with asyncio.timeout(10):
        while not (await asking.list(Query(runs.tenant_id, state="running"))).executions:
            await asyncio.sleep(0.02)
    assert (await lasting).state == "success"


async def test_a_wait_ends_with_the_run_as_it_is(runs: ExecutionBench) -> None:
    await runs.want(step())
    found = await runs.executions.run(runs.request(wait_s=0.3))
    assert found.state == "pending"


async def test_a_waiter_hears_of_an_end_in_another_process(
    runs: ExecutionBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.executor.executions.runs.POLL_S", 60.0)
    runs.running._changes = type(runs.changes)(runs.database)
    await runs.want(step())
    following = asyncio.create_task(runs.changes.follow())
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


async def test_links_say_what_a_run_belongs_to_and_find_it(runs: ExecutionBench) -> None:
    await runs.want(step())

    async def run(**links: str) -> UUID:
        return (await runs.executions.run(runs.request(links=links))).id

    both = await run(contact_id="42", flow_run_id="f-1")
    other, none = await run(contact_id="43", flow_run_id="f-1"), await run()
    assert (await runs.executions.get(runs.tenant_id, both)).links == {
        "contact_id": "42",
        "flow_run_id": "f-1",
    }

    async def ids(name: str, value: str, **filters: Any) -> list[UUID]:
        query = Query(runs.tenant_id, link=(name, value), **filters)
        return [each.id for each in (await runs.executions.list(query)).executions]

    assert await ids("contact_id", "42") == [both]
    assert await ids("flow_run_id", "f-1", state="pending", connector="c") == [other, both]
    assert await ids("flow_run_id", "f-1", state="success") == []
    assert await ids("flow_run_id", "42") == [] and none not in await ids("contact_id", "43")
    first = await runs.executions.list(
        Query(runs.tenant_id, link=("flow_run_id", "f-1"), page_size=1)
    )
    with pytest.raises(InvalidArgument, match="page_token"):
        await runs.executions.list(
            Query(runs.tenant_id, link=("contact_id", "42"), page_token=first.next_page_token)
        )
    assert await ids("flow_run_id", "f-1", page_token=first.next_page_token, page_size=1) == [both]


async def test_a_repeated_request_with_other_links_is_another(runs: ExecutionBench) -> None:
    await runs.want(step())
    await runs.executions.run(runs.request(request_id=runs.principal_id, links={"a": "1"}))
    with pytest.raises(FailedPrecondition):
        await runs.executions.run(runs.request(request_id=runs.principal_id, links={"a": "2"}))


@pytest.mark.parametrize(
    "links",
    [
        {f"l{n}": "x" for n in range(9)},
        {"Contact": "x"},
        {"": "x"},
        {"a": ""},
        {"a": "x" * 201},
        {"a": "x\n"},
    ],
    ids=["many", "name", "no name", "empty", "long", "unprintable"],
)
async def test_links_are_bounded(links: dict[str, str], runs: ExecutionBench) -> None:
    await runs.want(step())
    with pytest.raises(InvalidArgument, match="links"):
        await runs.executions.run(runs.request(links=links))
