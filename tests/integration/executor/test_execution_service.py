"""ExecutionService over gRPC, as callers have it."""

from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct, Value
from tenon.executor.v1 import execution_service_pb2 as pb
from tenon.executor.v1 import execution_service_pb2_grpc as pb_grpc

from services.chassis.interceptors import Call
from services.chassis.server import Listen, Service, serving
from services.chassis.tenancy import Principal
from services.executor.servicers.execution import ExecutionServicer
from tests.integration.executor.execution_bench import ExecutionBench, step

CONNECTOR = "tenants/acme/connectors/c"


@pytest.fixture
async def stub(runs: ExecutionBench) -> AsyncIterator["pb_grpc.ExecutionServiceAsyncStub"]:
    async def enter(call: Call) -> None:
        """What the gates find for a caller of acme."""
        call.principal = Principal(runs.principal_id, "user", "the caller")
        call.tenant, call.tenant_id = "acme", runs.tenant_id

    service = Service(
        pb.DESCRIPTOR.services_by_name["ExecutionService"], ExecutionServicer(runs.executions)
    )
    async with (
        serving([service], [enter], Listen("127.0.0.1:0"), grace_s=0.1) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield pb_grpc.ExecutionServiceStub(channel)


async def test_a_run_is_answered_read_and_listed_alike(
    runs: ExecutionBench, stub: "pb_grpc.ExecutionServiceAsyncStub"
) -> None:
    await runs.want(step(query={"n": "${input.n}"}, extract={"number": "$.number"}))
    wait = Duration()
    wait.FromTimedelta(timedelta(seconds=10))
    given = ParseDict({"n": 3}, Struct())
    async with runs.working():
        ran = await stub.RunConnector(
            pb.RunConnectorRequest(name=CONNECTOR, input=given, wait=wait)
        )
    assert ran.state == pb.Execution.STATE_SUCCESS and ran.connector == "c"
    assert (ran.trigger.kind, ran.trigger.uid) == ("rpc", str(runs.principal_id))
    assert [(each.step, each.state, each.attempts) for each in ran.steps] == [
        ("read", pb.StepResult.STATE_SUCCESS, 1)
    ]
    assert ran.steps[0].response_status == 200 and ran.steps[0].output["number"] == 7
    assert not ran.HasField("failure") and not ran.steps[0].HasField("failure")
    assert ran.create_time.seconds <= ran.start_time.seconds <= ran.end_time.seconds
    # A whole number came out of the Struct as one.
    assert runs.box.calls[0].query == {"n": "3"}
    assert await stub.GetExecution(pb.GetExecutionRequest(name=ran.name)) == ran
    listed = await stub.ListExecutions(
        pb.ListExecutionsRequest(parent="tenants/acme", state=pb.Execution.STATE_SUCCESS)
    )
    assert [each.name for each in listed.executions] == [ran.name]
    assert not listed.executions[0].steps


async def test_a_failure_says_why(
    runs: ExecutionBench, stub: "pb_grpc.ExecutionServiceAsyncStub"
) -> None:
    await runs.want(step(path="/repos/acme/shop/issues/999"))
    async with runs.working():
        ran = await stub.RunConnector(
            pb.RunConnectorRequest(name=CONNECTOR, wait=Duration(seconds=10))
        )
    assert (ran.state, ran.failure.reason) == (pb.Execution.STATE_FAILED, "NOT_FOUND")
    assert ran.steps[0].failure.reason == "NOT_FOUND" and ran.steps[0].failure.message


@pytest.mark.parametrize(
    "request_",
    [
        pb.RunConnectorRequest(name="tenants/acme/connectors/c", request_id="seven"),
        pb.RunConnectorRequest(name="tenants/acme/things/c"),
        pb.RunConnectorRequest(name=CONNECTOR, wait=Duration(seconds=61)),
        pb.RunConnectorRequest(name=CONNECTOR, wait=Duration(seconds=-1)),
        pb.RunConnectorRequest(name=CONNECTOR, input=ParseDict({"a": "x" * 65536}, Struct())),
        pb.RunConnectorRequest(name=CONNECTOR, input=ParseDict({"a": "x" * 2**20}, Struct())),
        pb.RunConnectorRequest(
            name=CONNECTOR, input=Struct(fields={"a": Value(number_value=float("nan"))})
        ),
        pb.GetExecutionRequest(name="tenants/acme/executions/7"),
        pb.GetExecutionRequest(name="executions/7"),
        pb.ListExecutionsRequest(parent="tenants/acme", page_size=-1),
        pb.ListExecutionsRequest(parent="tenants/acme", page_token="abc"),
        pb.ListExecutionsRequest(parent="tenants/acme", state=99),  # type: ignore[arg-type]
    ],
    ids=lambda each: str(each)[:40],
)
async def test_wrong_words_are_refused(
    request_: object, runs: ExecutionBench, stub: "pb_grpc.ExecutionServiceAsyncStub"
) -> None:
    await runs.want(step())
    rpc = {
        pb.RunConnectorRequest: stub.RunConnector,
        pb.GetExecutionRequest: stub.GetExecution,
        pb.ListExecutionsRequest: stub.ListExecutions,
    }[type(request_)]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await rpc(request_)  # type: ignore[operator]
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_an_execution_there_is_not_is_not_found(
    stub: "pb_grpc.ExecutionServiceAsyncStub",
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.GetExecution(pb.GetExecutionRequest(name=f"tenants/acme/executions/{uuid4()}"))
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
