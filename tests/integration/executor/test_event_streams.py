"""PublishEventStream: events taken in as they come, and how far that is told."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.struct_pb2 import Value
from tenon.executor.v1 import event_service_pb2 as pb

from services.chassis.errors import PermissionDenied
from services.chassis.status import from_rpc_error
from services.executor.engine import steering
from services.executor.engine.steering import Limits
from services.executor.events import streaming
from tests.integration.executor.delivery_bench import DeliveryBench
from tests.integration.executor.event_calls import PARENT, EventCalls, event_calls, new

Admin = psycopg.AsyncConnection[Any]
Message = pb.PublishEventStreamRequest
Call = Any
"""Of both streams; what it reads may be the end."""


@pytest.fixture
async def calls(out: DeliveryBench) -> AsyncIterator[EventCalls]:
    async with event_calls(out) as made:
        yield made


def said(*events: pb.NewEvent, **more: Any) -> Message:
    return Message(events=events, **more)


async def publish(
    calls: EventCalls, messages: Sequence[Message]
) -> tuple[list[int], grpc.aio.AioRpcError | None]:
    """What was answered, and how it ended."""
    taken: list[int] = []
    call: Call = calls.stub.PublishEventStream(iter(messages))
    try:
        while (answer := await call.read()) is not grpc.aio.EOF:
            taken.append(answer.taken)
    except grpc.aio.AioRpcError as error:
        return taken, error
    return taken, None


async def stored(calls: EventCalls) -> list[str]:
    """The keys of all events, the oldest first."""
    request = pb.ListEventsRequest(parent=PARENT, page_size=500)
    return [each.key for each in (await calls.stub.ListEvents(request)).events][::-1]


def keyed(*numbers: int) -> list[pb.NewEvent]:
    return [new(key=f"k-{number}") for number in numbers]


async def test_a_stream_is_taken_in_batch_by_batch_in_its_order_and_routed(
    out: DeliveryBench, calls: EventCalls, admin: Admin
) -> None:
    messages = [
        said(*keyed(0), parent=PARENT),
        *(said(*keyed(2 * n + 1, 2 * n + 2)) for n in range(160)),
    ]
    taken, error = await publish(calls, messages)
    assert error is None
    assert taken == sorted(set(taken)) and taken[-1] == 321
    # None is of more than 100, and those that were there together went together.
    steps = [now - before for before, now in zip([0, *taken], taken, strict=False)]
    assert max(steps) <= 100 and len(taken) < 100
    assert await stored(calls) == [f"k-{number}" for number in range(321)]
    counted = await admin.execute("SELECT count(*) FROM executor.deliveries")
    assert await counted.fetchone() == (321,)


async def test_what_is_answered_is_on_the_disk_while_the_stream_goes_on(
    out: DeliveryBench, calls: EventCalls
) -> None:
    call: Call = calls.stub.PublishEventStream()
    await call.write(said(*keyed(0, 1), parent=PARENT))
    assert (await call.read()).taken == 2
    assert await stored(calls) == ["k-0", "k-1"]
    await call.write(said(*keyed(2)))
    assert (await call.read()).taken == 3
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (said(new(), new("no spaces")), "events[4].type"),
        (said(new(key="ä")), "events[3].key"),
        (said(*[new()] * 101), "events"),
        (said(new(payload="x" * 2**20)), "events"),
        (said(pb.NewEvent(type="a", payload=Value(number_value=float("nan")))), "events[3].payload"),
        (said(new(), parent="tenants/globex"), "parent"),
    ],
    ids=lambda each: each if isinstance(each, str) else "message",
)  # fmt: skip
async def test_a_fault_says_where_in_the_stream_it_is_and_what_was_before_it_stays(
    bad: Message, field: str, out: DeliveryBench, calls: EventCalls
) -> None:
    before = [said(*keyed(0, 1), parent=PARENT), said(), said(*keyed(2))]
    taken, error = await publish(calls, [*before, bad, said(*keyed(9))])
    assert error is not None and error.code() is grpc.StatusCode.INVALID_ARGUMENT
    told = from_rpc_error(error)
    assert [each.field for each in told.violations] == [field]
    assert told.metadata["taken"] == "3" and "3 events of this stream" in told.message
    assert taken[-1] == 3 and await stored(calls) == ["k-0", "k-1", "k-2"]
    # With keys all of it may be sent anew.
    taken, error = await publish(calls, [*before, said(*keyed(9))])
    assert error is None and taken[-1] == 4
    assert await stored(calls) == ["k-0", "k-1", "k-2", "k-9"]


async def test_a_quota_that_is_used_up_says_how_far_it_held(
    out: DeliveryBench, calls: EventCalls
) -> None:
    async with out.database.tenant(out.tenant_id) as tx:
        await steering.govern(tx, out.tenant_id, Limits(work_per_hour=100))
    messages = [said(*keyed(*range(60 * n, 60 * n + 60)), parent=PARENT) for n in range(2)]
    taken, error = await publish(calls, messages)
    assert error is not None and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    told = from_rpc_error(error)
    assert (taken, told.metadata["taken"], told.code) == ([60], "60", "WORK_QUOTA_EXHAUSTED")
    assert told.retry_after_s and told.metadata["limit"] == "100"
    assert len(await stored(calls)) == 60


async def test_who_may_no_longer_publishes_no_more(out: DeliveryBench, calls: EventCalls) -> None:
    call: Call = calls.stub.PublishEventStream()
    await call.write(said(*keyed(0), parent=PARENT))
    assert (await call.read()).taken == 1
    calls.barred.append(PermissionDenied("no longer"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await asyncio.wait_for(call.read(), 5)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    calls.barred.clear()
    assert await stored(calls) == ["k-0"]


async def test_a_server_that_drains_says_how_far_a_stream_is(
    out: DeliveryBench, calls: EventCalls
) -> None:
    call: Call = calls.stub.PublishEventStream()
    await call.write(said(*keyed(0), parent=PARENT))
    assert (await call.read()).taken == 1
    calls.arrivals.close()
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await asyncio.wait_for(call.read(), 5)
    told = from_rpc_error(ended.value)
    assert (ended.value.code().name, told.code) == ("UNAVAILABLE", "DRAINING")
    assert told.metadata["taken"] == "1" and await stored(calls) == ["k-0"]


async def test_a_tenant_has_so_many_streams_and_no_more(
    out: DeliveryBench, calls: EventCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "STREAMS_OF_TENANT", 1)
    call: Call = calls.stub.PublishEventStream()
    await call.write(said(*keyed(0), parent=PARENT))
    assert (await call.read()).taken == 1
    _, error = await publish(calls, [said(*keyed(1), parent=PARENT)])
    assert error is not None and from_rpc_error(error).code == "STREAMS_EXHAUSTED"
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    # Its place is another's.
    assert await publish(calls, [said(*keyed(1), parent=PARENT)]) == ([1], None)


async def test_a_stream_without_messages_is_refused(calls: EventCalls) -> None:
    taken, error = await publish(calls, [])
    assert error is not None and error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert taken == []


async def test_who_is_still_writing_hears_why_their_stream_ended(calls: EventCalls) -> None:
    bad = [said(*keyed(0), parent=PARENT), said(new("no spaces")), *[said(*keyed(1))] * 50]
    for _, error in await asyncio.gather(*(publish(calls, bad) for _ in range(10))):
        assert error is not None and error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await stored(calls) == ["k-0"]
    calls.barred.append(PermissionDenied("not here"))
    for _, error in await asyncio.gather(*(publish(calls, bad) for _ in range(10))):
        assert error is not None and error.code() is grpc.StatusCode.PERMISSION_DENIED
