"""ExecutionService over gRPC, as callers have it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import Parse, ParseDict
from google.protobuf.struct_pb2 import Struct, Value
from tenon.executor.v1 import execution_service_pb2 as pb
from tenon.executor.v1 import execution_service_pb2_grpc as pb_grpc

from services.chassis.interceptors import Call
from services.chassis.server import Listen, Service, serving
from services.chassis.tenancy import Principal
from tests.integration.executor.execution_bench import ExecutionBench, comment, step

CONNECTOR = "tenants/acme/connectors/c"


@pytest.fixture
async def stub(runs: ExecutionBench) -> AsyncIterator["pb_grpc.ExecutionServiceAsyncStub"]:
    async def enter(call: Call) -> None:
        """What the gates find for a caller of acme."""
        call.principal = Principal(runs.principal_id, "user", "the caller")
        call.tenant, call.tenant_id = "acme", runs.tenant_id

    service = Service(pb.DESCRIPTOR.services_by_name["ExecutionService"], runs.servicer())
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
        pb.RunConnectorRequest(name=CONNECTOR, links={"Contact": "42"}),
        pb.WatchExecutionRequest(name="tenants/acme/executions/7"),
        pb.CancelExecutionRequest(name="tenants/acme/executions/7"),
        pb.DryRunConnectorRequest(name="tenants/acme/things/c"),
        pb.DryRunConnectorRequest(name=CONNECTOR, steps={"gone": pb.StepExample()}),
        pb.DryRunConnectorRequest(name=CONNECTOR, event=ParseDict({"a": "x" * 2**20}, Struct())),
        pb.GetConnectorRequest(name="tenants/acme/things/c"),
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
        pb.WatchExecutionRequest: stub.WatchExecution,
        pb.CancelExecutionRequest: stub.CancelExecution,
        pb.DryRunConnectorRequest: stub.DryRunConnector,
        pb.GetConnectorRequest: stub.GetConnector,
    }[type(request_)]
    call = rpc(request_)  # type: ignore[operator]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await (call.read() if hasattr(call, "read") else call)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_an_output_is_in_full_in_the_answer_and_masked_elsewhere(
    runs: ExecutionBench, stub: "pb_grpc.ExecutionServiceAsyncStub"
) -> None:
    output = [{"source": "input.words", "target": "words"}]
    await runs.want(step(), whole={"output": output})
    words = "w" * 100
    async with runs.working():
        ran = await stub.RunConnector(
            pb.RunConnectorRequest(
                name=CONNECTOR,
                input=ParseDict({"words": words}, Struct()),
                wait=Duration(seconds=10),
                links={"contact_id": "42"},
            )
        )
    assert ran.output["words"] == words and ran.links == {"contact_id": "42"}
    found = await stub.GetExecution(pb.GetExecutionRequest(name=ran.name))
    assert found.output["words"] == "w" * 64 + "…"
    link = pb.Link(name="contact_id", value="42")
    listed = await stub.ListExecutions(pb.ListExecutionsRequest(parent="tenants/acme", link=link))
    assert [each.name for each in listed.executions] == [ran.name]


async def test_a_watch_shows_a_run_to_its_end_and_ends_with_it(
    runs: ExecutionBench, stub: "pb_grpc.ExecutionServiceAsyncStub"
) -> None:
    await runs.want(step(path="/repos/acme/shop/issues/999", continue_on_error=True))
    ran = await stub.RunConnector(pb.RunConnectorRequest(name=CONNECTOR))
    seen: list[pb.Execution] = []
    watch = stub.WatchExecution(pb.WatchExecutionRequest(name=ran.name), timeout=20)
    changes = aiter(watch)
    seen.append(await anext(changes))
    async with runs.working():
        seen += [each async for each in changes]
    assert seen[0].state == pb.Execution.STATE_PENDING
    assert seen[-1].state == pb.Execution.STATE_SUCCESS and seen[-1].failed_steps == 1
    assert await watch.code() == grpc.StatusCode.OK


async def test_a_watcher_who_goes_is_forgotten(
    runs: ExecutionBench, stub: "pb_grpc.ExecutionServiceAsyncStub"
) -> None:
    await runs.want(step())
    ran = await stub.RunConnector(pb.RunConnectorRequest(name=CONNECTOR))
    watch = stub.WatchExecution(pb.WatchExecutionRequest(name=ran.name))
    await watch.read()
    assert runs.changes.waiters() == 1
    watch.cancel()
    async with asyncio.timeout(10):
        while runs.changes.waiters():
            await asyncio.sleep(0.01)


async def test_a_cancelled_run_says_so(
    runs: ExecutionBench, stub: "pb_grpc.ExecutionServiceAsyncStub"
) -> None:
    await runs.want(step())
    ran = await stub.RunConnector(pb.RunConnectorRequest(name=CONNECTOR))
    found = await stub.CancelExecution(pb.CancelExecutionRequest(name=ran.name))
    assert (found.state, found.failure.reason) == (pb.Execution.STATE_CANCELLED, "CANCELLED")
    listed = await stub.ListExecutions(
        pb.ListExecutionsRequest(parent="tenants/acme", state=pb.Execution.STATE_CANCELLED)
    )
    assert [each.name for each in listed.executions] == [ran.name]


async def test_a_dry_run_shows_what_would_be_sent_and_what_is_wrong(
    runs: ExecutionBench, stub: "pb_grpc.ExecutionServiceAsyncStub"
) -> None:
    await runs.want(
        comment("a", text="${event.payload.n}"),
        step("b", query={"id": "${steps.a.output.id}", "all": "${steps.a.body[1]}"}),
        step("c", condition="input.go"),
        step("d", query={"id": "${steps.b.output.id}"}),
        whole={"output": [{"source": "steps.a.status", "target": "status"}]},
    )
    example = pb.StepExample(
        output=ParseDict({"id": 7}, Struct()), status=201, body=Parse("[1, 2]", Value())
    )
    found = await stub.DryRunConnector(
        pb.DryRunConnectorRequest(
            name=CONNECTOR,
            input=ParseDict({"go": False}, Struct()),
            event=ParseDict({"payload": {"n": 3}}, Struct()),
            steps={"a": example},
        )
    )
    a, b, c, d = found.steps
    kinds = pb.DryStep
    assert [each.outcome for each in found.steps] == [
        kinds.OUTCOME_SENDS, kinds.OUTCOME_SENDS, kinds.OUTCOME_SKIPPED, kinds.OUTCOME_FAILS,
    ]  # fmt: skip
    assert (a.method, a.body, a.body_size) == ("POST", '{"body":3}', 10)
    assert a.headers["authorization"] == "Bearer •••" and b.url.endswith("?id=7&all=2")
    assert (c.url, [each.reason for each in d.failures]) == ("", ["VALUE_MISSING"])
    assert found.output["status"] == 201 and not found.HasField("output_failure")
    assert runs.box.calls == []


async def test_a_connector_says_how_its_runs_went(
    runs: ExecutionBench, stub: "pb_grpc.ExecutionServiceAsyncStub"
) -> None:
    await runs.want(step())
    asked = pb.GetConnectorRequest(name=CONNECTOR)
    unused = await stub.GetConnector(asked)
    assert unused.is_active and not unused.HasField("last_execution")
    assert not unused.last_day.HasField("success_share")
    async with runs.working():
        ran = await stub.RunConnector(
            pb.RunConnectorRequest(name=CONNECTOR, wait=Duration(seconds=10))
        )
    found = await stub.GetConnector(asked)
    assert found.name == CONNECTOR and found.last_execution.name == ran.name
    assert (found.last_day.total, dict(found.last_week.states)) == (1, {"success": 1})
    assert found.last_day.success_share == 1 and found.last_day.HasField("median")


async def test_an_execution_there_is_not_is_not_found(
    stub: "pb_grpc.ExecutionServiceAsyncStub",
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.GetExecution(pb.GetExecutionRequest(name=f"tenants/acme/executions/{uuid4()}"))
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
