"""A tenant's quota of work: refused with what and until when, and honoured after that time."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest
from tenon.executor.v1 import execution_service_pb2 as pb
from tenon.executor.v1 import execution_service_pb2_grpc as pb_grpc

from services.chassis.errors import ResourceExhausted
from services.chassis.interceptors import Call
from services.chassis.server import Listen, Service, serving
from services.chassis.status import from_rpc_error
from services.chassis.tenancy import Principal
from services.executor.engine import steering
from services.executor.engine.steering import Limits
from tests.integration.executor.execution_bench import ExecutionBench, step
from tests.integration.executor.lane_bench import LaneBench

Admin = psycopg.AsyncConnection[Any]


async def allow(bench: LaneBench | ExecutionBench, work_per_hour: int) -> None:
    async with bench.database.tenant(bench.tenant_id) as tx:
        await steering.govern(tx, bench.tenant_id, Limits(work_per_hour=work_per_hour))


async def pass_time(admin: Admin, seconds: float) -> None:
    """Move the quota's time, which is the database's, into the past."""
    await admin.execute(
        "UPDATE executor.tenant_lanes SET quota_at = quota_at - make_interval(secs => %s)",
        [seconds],
    )


async def refusal(bench: LaneBench, count: int = 1) -> float:
    """In how many seconds, as we are told, so much may be asked for again."""
    with pytest.raises(ResourceExhausted) as refused:
        await bench.enqueue(*(bench.item() for _ in range(count)))
    assert refused.value.retry_after_s is not None
    return refused.value.retry_after_s


async def test_an_hours_work_may_begin_at_once_and_the_rest_as_it_comes_back(
    bench: LaneBench, admin: Admin
) -> None:
    await allow(bench, 60)
    await bench.enqueue(*(bench.item() for _ in range(59)))
    await bench.enqueue(bench.item())
    assert 55 < await refusal(bench) <= 60
    wait_s = await refusal(bench, count=3)
    assert 170 < wait_s <= 180
    await pass_time(admin, wait_s - 60)
    assert 50 < await refusal(bench, count=3) <= 60
    await pass_time(admin, 60)
    await bench.enqueue(*(bench.item() for _ in range(3)))
    assert (await admin.execute("SELECT FROM executor.work")).rowcount == 63


async def test_more_than_a_quota_ever_holds_goes_when_it_is_full_and_is_paid_for_afterwards(
    bench: LaneBench, admin: Admin
) -> None:
    await allow(bench, 2)
    await bench.enqueue(*(bench.item() for _ in range(5)))
    wait_s = await refusal(bench, count=5)
    assert wait_s > 2.4 * 3600
    await pass_time(admin, wait_s)
    await bench.enqueue(*(bench.item() for _ in range(5)))


async def test_a_quota_is_kept_by_many_at_once(bench: LaneBench, admin: Admin) -> None:
    await allow(bench, 20)
    answers = await asyncio.gather(
        *(bench.enqueue(bench.item(uuid4())) for _ in range(30)), return_exceptions=True
    )
    assert sum(isinstance(answer, ResourceExhausted) for answer in answers) == 10
    assert answers.count(None) == 20
    assert (await admin.execute("SELECT FROM executor.work")).rowcount == 20


async def test_a_request_refused_by_the_quota_starts_its_run_later_and_once(
    runs: ExecutionBench, admin: Admin
) -> None:
    await allow(runs, 1)
    await runs.want(step())
    first, second = (runs.request(request_id=uuid4(), wait_s=0) for _ in range(2))
    started = await runs.executions.run(first)
    for _ in range(2):
        with pytest.raises(ResourceExhausted):
            await runs.executions.run(second)
    # What was answered once is answered again, whatever is left of the quota.
    assert (await runs.executions.run(first)).id == started.id
    for table in ("executions", "run_requests", "work"):
        found = await admin.execute(f"SELECT FROM executor.{table}")
        assert found.rowcount == 1, table
    await pass_time(admin, 3600)
    later = await runs.executions.run(second)
    assert later.id != started.id
    assert (await runs.executions.run(second)).id == later.id


@pytest.fixture
async def stub(runs: ExecutionBench) -> AsyncIterator["pb_grpc.ExecutionServiceAsyncStub"]:
    async def enter(call: Call) -> None:
        call.principal = Principal(runs.principal_id, "user", "the caller")
        call.tenant, call.tenant_id = "acme", runs.tenant_id

    contract = pb.DESCRIPTOR.services_by_name["ExecutionService"]
    service = Service(contract, runs.servicer())
    async with (
        serving([service], [enter], Listen("127.0.0.1:0"), grace_s=0.1) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield pb_grpc.ExecutionServiceStub(channel)


async def test_a_caller_is_told_which_quota_and_until_when(
    runs: ExecutionBench, stub: "pb_grpc.ExecutionServiceAsyncStub"
) -> None:
    await allow(runs, 1)
    await runs.want(step())
    request = pb.RunConnectorRequest(name="tenants/acme/connectors/c")
    await stub.RunConnector(request)
    with pytest.raises(grpc.RpcError) as refused:
        await stub.RunConnector(request)
    told = from_rpc_error(refused.value)
    assert isinstance(told, ResourceExhausted)
    assert told.code == "WORK_QUOTA_EXHAUSTED"
    assert told.metadata["quota"] == "work_per_hour" and told.metadata["limit"] == "1"
    assert told.retry_after_s is not None and 3590 < told.retry_after_s <= 3600
