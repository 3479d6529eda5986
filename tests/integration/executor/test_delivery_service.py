"""DeliveryService over gRPC: what was delivered, how it went, and what is delivered again."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import grpc
import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tenon.executor.v1 import delivery_service_pb2 as pb
from tenon.executor.v1 import delivery_service_pb2_grpc as pb_grpc
from tenon.executor.v1 import lane_service_pb2 as lane_pb

from services.chassis.ids import uuid7_floor, uuid7_time
from services.chassis.interceptors import Call
from services.chassis.server import Listen, Service, serving
from services.chassis.status import from_rpc_error
from services.chassis.tenancy import Principal
from services.executor.deliveries.again import BATCHES, Again
from services.executor.deliveries.endpoints import Endpoints
from services.executor.deliveries.policies import KIND
from services.executor.deliveries.reading import DeliveryLog
from services.executor.engine import steering
from services.executor.engine.steering import Limits
from services.executor.engine.switchboard import Switchboard
from services.executor.engine.work import LanePolicy
from services.executor.servicers.delivery import DeliveryServicer
from services.executor.store import projected
from services.providers.catalog import Catalog
from tests.integration.executor.delivery_bench import DeliveryBench, subscription

Admin = psycopg.AsyncConnection[Any]
Stub: TypeAlias = "pb_grpc.DeliveryServiceAsyncStub"
PARENT = "tenants/acme"
ENDPOINT = f"{PARENT}/webhookEndpoints/out"
BATCH = 3
KEYS = "SELECT order_key FROM executor.deliveries ORDER BY id"
CALLER = uuid4()


@pytest.fixture
async def stub(out: DeliveryBench) -> AsyncIterator[Stub]:
    async def enter(call: Call) -> None:
        """What the gates find for a caller of acme."""
        call.principal = Principal(CALLER, "user", "Ada")
        call.tenant, call.tenant_id = "acme", out.tenant_id

    servicer = DeliveryServicer(
        DeliveryLog(out.database),
        Again(out.database, BATCH),
        Endpoints(out.database, Switchboard(out.database, Catalog({}), [KIND])),
    )
    service = Service(pb.DESCRIPTOR.services_by_name["DeliveryService"], servicer)
    async with (
        serving([service], [enter], Listen("127.0.0.1:0"), grace_s=0.1) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield pb_grpc.DeliveryServiceStub(channel)


def name_of(delivery: Any) -> str:
    return f"{PARENT}/deliveries/{delivery.id}"


async def dead(out: DeliveryBench, count: int, *retries: str) -> list[Any]:
    """So many deliveries that their endpoint has not taken at any try."""
    await out.want(delivery={"retries": list(retries)})
    for _ in range(count):
        await out.publish()
    out.receiver.answer(*[500] * (count + count * len(retries)))
    async with out.working():
        return await out.until(lambda found: [d.state for d in found] == ["dead"] * count)


async def deeds(admin: Admin) -> list[dict[str, Any]]:
    """What was written down for the audit log, in order."""
    rows = await admin.execute("SELECT event FROM executor.audit_outbox ORDER BY id")
    return [event for (event,) in await rows.fetchall()]


async def recover(stub: Stub, since: datetime | None = None, token: str = "") -> Any:
    moment = Timestamp()
    moment.FromDatetime(since or datetime.now(UTC) - timedelta(hours=1))
    request = pb.RecoverEndpointRequest(endpoint=ENDPOINT, since=moment, page_token=token)
    return await stub.RecoverEndpoint(request)


async def test_a_delivery_tells_how_each_try_went(out: DeliveryBench, stub: Stub) -> None:
    event_id = await out.publish()
    out.receiver.answer(500, text="not now")
    async with out.working():
        (one,) = await out.until(lambda found: [d.state for d in found] == ["success"])
    found = await stub.GetDelivery(pb.GetDeliveryRequest(name=name_of(one)))
    assert (found.state, found.attempts, found.response_status) == (
        pb.Delivery.STATE_SUCCESS,
        2,
        200,
    )
    assert (found.event, found.event_type) == (f"{PARENT}/events/{event_id}", "invoice.paid")
    assert (found.endpoint, found.subscription) == ("out", "all")
    assert found.HasField("create_time") and found.HasField("end_time")
    first, second = found.tries
    assert (first.number, first.response_status, first.failure_reason) == (1, 500, "HTTP_500")
    assert first.response_head == "not now" and first.HasField("start_time")
    assert (second.number, second.response_status, second.failure_reason) == (2, 200, "")
    assert found.payload_hash == hashlib.sha256(out.receiver.got[0].body).digest()


async def test_pages_have_each_delivery_once_by_endpoint_and_state(
    out: DeliveryBench, stub: Stub
) -> None:
    other = replace(out.endpoint, name="other", object_id=uuid4())
    routed = [subscription("a"), subscription("b", deliver_to="other")]
    async with out.database.tenant(out.tenant_id) as tx:
        await projected.replace(tx, out.tenant_id, [out.endpoint, other, *routed])
    for _ in range(4):
        await out.publish()
    made = [name_of(each) for each in await out.deliveries()][::-1]
    of_other = [name_of(d) for d in await out.deliveries() if d.endpoint == "other"][::-1]
    queued, dead_ = pb.Delivery.STATE_QUEUED, pb.Delivery.STATE_DEAD
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({}, made),
        ({"endpoint": "other"}, of_other),
        ({"state": queued}, made),
        ({"state": dead_}, []),
        ({"endpoint": "other", "state": queued}, of_other),
        ({"endpoint": "absent"}, []),
    ]
    for asked, wanted in cases:
        found: list[pb.Delivery] = []
        token = ""
        while True:
            answer = await stub.ListDeliveries(
                pb.ListDeliveriesRequest(parent=PARENT, page_size=3, page_token=token, **asked)
            )
            found += answer.deliveries
            token = answer.next_page_token
            if not token:
                break
        assert [each.name for each in found] == wanted
        assert not any(each.tries for each in found)


async def test_what_is_dead_is_delivered_again_and_its_tries_go_on_counting(
    out: DeliveryBench, stub: Stub, admin: Admin
) -> None:
    (one,) = await dead(out, 1, "0.01s")
    again = await stub.RetryDelivery(pb.RetryDeliveryRequest(name=name_of(one)))
    assert (again.state, again.attempts) == (pb.Delivery.STATE_QUEUED, 2)
    assert not again.HasField("end_time")
    out.receiver.answer(503)
    async with out.working():
        await out.until(lambda found: found[0].state == "success")
    found = await stub.GetDelivery(pb.GetDeliveryRequest(name=name_of(one)))
    # Its schedule begins anew: one more try failed, and another one was left.
    assert [(each.number, each.response_status) for each in found.tries] == [
        (1, 500),
        (2, 500),
        (3, 503),
        (4, 200),
    ]
    assert len({got.headers["webhook-id"] for got in out.receiver.got}) == 1
    assert len({got.body for got in out.receiver.got}) == 1
    (told,) = await deeds(admin)
    assert (told["kind"], told["action"], told["object"]) == ("Delivery", "retry", "out")
    assert (told["object_uid"], told["actor"]["uid"]) == (str(one.id), str(CALLER))


async def test_what_was_taken_is_delivered_again_too(out: DeliveryBench, stub: Stub) -> None:
    await out.publish()
    async with out.working():
        (one,) = await out.until(lambda found: [d.state for d in found] == ["success"])
        await stub.RetryDelivery(pb.RetryDeliveryRequest(name=name_of(one)))
        await out.until(lambda found: found[0].attempts == 2 and found[0].state == "success")
    assert len(out.receiver.got) == 2


async def test_what_is_on_its_way_is_not_begun_twice(
    out: DeliveryBench, stub: Stub, admin: Admin
) -> None:
    await out.publish()
    (one,) = await out.deliveries()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.RetryDelivery(pb.RetryDeliveryRequest(name=name_of(one)))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert from_rpc_error(refused.value).code == "DELIVERY_UNDER_WAY"
    async with out.working():
        await out.until(lambda found: found[0].state == "success")
    retry = pb.RetryDeliveryRequest(name=name_of(one))
    twins = await asyncio.gather(
        *(stub.RetryDelivery(retry) for _ in range(5)), return_exceptions=True
    )
    assert len([each for each in twins if isinstance(each, pb.Delivery)]) == 1
    counted = await admin.execute("SELECT count(*) FROM executor.work")
    assert await counted.fetchone() == (1,) and len(await deeds(admin)) == 1


async def test_nothing_is_delivered_again_to_an_endpoint_that_has_gone(
    out: DeliveryBench, stub: Stub
) -> None:
    (one,) = await dead(out, 1)
    heir = replace(out.endpoint, object_id=uuid4())
    for there in ([], [heir]):
        async with out.database.tenant(out.tenant_id) as tx:
            await projected.replace(tx, out.tenant_id, there)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.RetryDelivery(pb.RetryDeliveryRequest(name=name_of(one)))
        assert from_rpc_error(refused.value).code == "ENDPOINT_GONE"
    # Its heir has missed nothing.
    assert (await recover(stub)).count == 0
    assert [each.state for each in await out.deliveries()] == ["dead"]


async def test_an_endpoint_gets_all_that_it_has_missed_since_and_nothing_else(
    out: DeliveryBench, stub: Stub, admin: Admin
) -> None:
    missed = await dead(out, 2 * BATCH + 1)
    await out.publish()
    async with out.working():
        await out.until(lambda found: found[-1].state == "success")
    between = uuid7_time(missed[3].id)
    answer = await recover(stub, between)
    assert (answer.count, answer.next_page_token) == (2 * BATCH - 2, "")
    states = [each.state for each in await out.deliveries()]
    assert states == ["dead"] * 3 + ["queued"] * (2 * BATCH - 2) + ["success"]
    assert (await recover(stub, between)).count == 0
    assert (await recover(stub)).count == 3
    async with out.working():
        await out.until(lambda found: all(d.state == "success" for d in found))
    told = await deeds(admin)
    assert {(each["kind"], each["action"], each["object"]) for each in told} == {
        ("Delivery", "recover", "out")
    }
    counts = [next(f["after"] for f in each["fields"] if f["path"] == "count") for each in told]
    assert counts == ["3", "1", "3"]


async def test_a_large_recovery_goes_on_where_the_last_call_ended(
    out: DeliveryBench, stub: Stub, admin: Admin
) -> None:
    count = BATCH * BATCHES + 2
    await out.want()
    for _ in range(count):
        await out.publish()
    await admin.execute("DELETE FROM executor.work")
    await admin.execute("UPDATE executor.deliveries SET state = 'failed', ended_at = now()")
    since = datetime.now(UTC) - timedelta(hours=1)
    first = await recover(stub, since)
    assert first.count == BATCH * BATCHES and first.next_page_token
    # What fails again meanwhile is not taken up a second time.
    await admin.execute(
        "UPDATE executor.deliveries SET state = 'dead', ended_at = now() WHERE id ="
        " (SELECT min(id::text)::uuid FROM executor.deliveries)"
    )
    rest = await recover(stub, since, first.next_page_token)
    assert (rest.count, rest.next_page_token) == (2, "")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await recover(stub, since - timedelta(hours=1), first.next_page_token)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_recovery_that_is_cut_short_is_gone_on_with(
    out: DeliveryBench, stub: Stub, admin: Admin
) -> None:
    await dead(out, 2 * BATCH)
    async with out.database.tenant(out.tenant_id) as tx:
        await steering.govern(tx, out.tenant_id, Limits(work_per_hour=BATCH))
    # What one batch takes is all that the quota holds.
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await recover(stub)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    states = [each.state for each in await out.deliveries()]
    assert states == ["queued"] * BATCH + ["dead"] * BATCH
    counted = await admin.execute("SELECT count(*) FROM executor.work")
    assert await counted.fetchone() == (BATCH,) and len(await deeds(admin)) == 1
    async with out.database.tenant(out.tenant_id) as tx:
        await steering.govern(tx, out.tenant_id, Limits())
    assert (await recover(stub)).count == BATCH


async def test_what_is_delivered_again_keeps_the_order_of_its_key(
    out: DeliveryBench, stub: Stub, admin: Admin
) -> None:
    by_key = {"ordering": "key", "key": "event.payload.who", "retries": ["0.3s"]}
    await out.want(delivery=by_key)
    for who, number in (("ada", 0), ("ada", 1), ("bob", 0), ("bob", 1)):
        await out.publish(payload={"who": who, "n": number})
    keys = [row[0] for row in await (await admin.execute(KEYS)).fetchall()]
    assert keys[0] == keys[1] != keys[2] == keys[3]
    # It tells nothing of the event to who looks at the table.
    assert not any(who in key for key in keys for who in ("ada", "bob"))
    await admin.execute("DELETE FROM executor.work")
    await admin.execute("UPDATE executor.deliveries SET state = 'dead', ended_at = now()")
    first, *_ = await out.deliveries()
    await stub.RetryDelivery(pb.RetryDeliveryRequest(name=name_of(first)))
    assert (await recover(stub)).count == 3
    # Behind them goes what is new of a key.
    await out.publish(payload={"who": "ada", "n": 2})
    out.receiver.answer(500)
    async with out.working():
        await out.until(lambda found: [d.state for d in found] == ["success"] * 5)
    seen = [json.loads(got.body)["data"] for got in out.receiver.got]
    held = seen[0]["who"]
    wanted = {"ada": [0, 1, 2], "bob": [0, 1]}
    wanted[held] = [0, *wanted[held]]
    assert {who: [e["n"] for e in seen if e["who"] == who] for who in wanted} == wanted
    # One key does not hold up the other.
    assert seen[1]["who"] != held


async def states(stub: Stub, **asked: Any) -> dict[str, pb.EndpointState]:
    request = pb.ListEndpointStatesRequest(parent=PARENT, **asked)
    found = (await stub.ListEndpointStates(request)).endpoint_states
    return {each.name.rpartition("/")[2]: each for each in found}


async def test_an_endpoint_tells_how_it_stands_and_how_the_last_day_went(
    out: DeliveryBench, stub: Stub, admin: Admin, tenant_ids: tuple[UUID, UUID]
) -> None:
    await out.want(delivery={"retries": []})
    out.receiver.answer(410, 200, 503)
    for state in ("failed", "success", "dead"):
        await out.publish()
        async with out.working():
            await out.until(lambda found, state=state: found[-1].state == state)  # type: ignore[misc]
        if state == "failed":
            async with out.database.tenant(out.tenant_id) as tx:
                await steering.resume(tx, out.tenant_id, out.endpoint.object_id)
    for _ in range(2):
        await out.publish()
    # What was made earlier is not counted.
    early = uuid7_floor(datetime.now(UTC) - timedelta(hours=25))
    await admin.execute("UPDATE executor.deliveries SET id = %s WHERE state = 'failed'", [early])
    found = (await states(stub))["out"]
    counts = (found.queued, found.sending, found.retrying, found.success, found.failed, found.dead)
    assert counts == (2, 0, 0, 1, 0, 1) and found.success_rate == 0.5
    assert found.last_failure_reason == "HTTP_503"
    success, failure = found.last_success_time, found.last_failure_time
    assert success.ToDatetime(UTC) < failure.ToDatetime(UTC) <= datetime.now(UTC)
    assert found.HasField("duration_p50")
    assert found.duration_p50.ToMilliseconds() <= found.duration_p95.ToMilliseconds() < 2000
    assert (found.name, found.lane.owner, found.lane.waiting) == (ENDPOINT, "out", 2)
    assert (found.lane.breaker, found.lane.failures) == (lane_pb.Lane.BREAKER_CLOSED, 1)
    out.tenant_id = tenant_ids[1]
    assert await states(stub) == {}


async def test_of_an_endpoint_without_deliveries_nothing_is_told_but_its_lane(
    out: DeliveryBench, stub: Stub
) -> None:
    others = [replace(out.endpoint, name=f"idle-{n}", object_id=uuid4()) for n in range(2)]
    gone = uuid4()
    lanes_of = {each: LanePolicy() for each in (gone, *(other.object_id for other in others))}
    async with out.database.tenant(out.tenant_id) as tx:
        await projected.replace(tx, out.tenant_id, others)
        await steering.shape(tx, out.tenant_id, KIND, lanes_of)
    found = await states(stub)
    assert set(found) == {"idle-0", "idle-1"}
    idle = found["idle-0"]
    assert not idle.HasField("success_rate") and not idle.HasField("duration_p50")
    assert not (idle.queued or idle.last_failure_reason or idle.HasField("last_success_time"))
    pages, token = list[str](), ""
    while True:
        request = pb.ListEndpointStatesRequest(parent=PARENT, page_size=1, page_token=token)
        answer = await stub.ListEndpointStates(request)
        pages += [each.name for each in answer.endpoint_states]
        token = answer.next_page_token
        if not token:
            break
    assert sorted(pages) == [f"{PARENT}/webhookEndpoints/idle-{n}" for n in range(2)]


async def test_a_breaker_that_is_reset_lets_what_waits_be_tried_at_once(
    out: DeliveryBench, stub: Stub, admin: Admin
) -> None:
    await out.want(delivery={"retries": ["60s"], "concurrency": 1})
    out.receiver.answer(*[500] * 10)
    for _ in range(12):
        await out.publish()
    async with out.working():
        await out.until(lambda found: sum(d.state == "retrying" for d in found) == 10)
        opened = await until_open(stub)
        assert [each.code for each in opened.lane.reasons] == ["BREAKER_OPEN"]
        assert opened.lane.trips == 1 and opened.lane.HasField("open_until_time")
        assert (opened.retrying, opened.queued) == (10, 2)
        closed = await stub.ResetCircuit(pb.ResetCircuitRequest(endpoint=ENDPOINT))
        assert (closed.breaker, closed.trips) == (lane_pb.Lane.BREAKER_CLOSED, 0)
        assert not closed.HasField("open_until_time")
        await out.until(lambda found: sum(d.state == "success" for d in found) == 2)
    (told,) = await deeds(admin)
    assert (told["kind"], told["action"], told["object"]) == ("Lane", "reset", "out")
    assert told["actor"]["uid"] == str(CALLER)
    async with out.database.tenant(out.tenant_id) as tx:
        await steering.pause(tx, out.tenant_id, out.endpoint.object_id, "the customer asked")
    still = await stub.ResetCircuit(pb.ResetCircuitRequest(endpoint=ENDPOINT))
    assert [each.code for each in still.reasons] == ["PAUSED"]


async def until_open(stub: Stub) -> pb.EndpointState:
    """The endpoint, once its breaker is open."""
    async with asyncio.timeout(10):
        while (found := (await states(stub))["out"]).lane.breaker != lane_pb.Lane.BREAKER_OPEN:
            await asyncio.sleep(0.02)
    return found


async def test_two_recoveries_at_once_begin_each_delivery_once(
    out: DeliveryBench, stub: Stub, admin: Admin
) -> None:
    await dead(out, 3 * BATCH)
    answers = await asyncio.gather(*(recover(stub) for _ in range(3)))
    left = await recover(stub)
    assert sum(each.count for each in answers) + left.count == 3 * BATCH
    works = await admin.execute("SELECT count(*), count(DISTINCT target_id) FROM executor.work")
    assert await works.fetchone() == (3 * BATCH, 3 * BATCH)


OLD = Timestamp(seconds=-1)
UID = UUID(int=7)


@pytest.mark.parametrize(
    ("method", "request_", "code"),
    [
        ("GetDelivery", pb.GetDeliveryRequest(name=f"{PARENT}/deliveries/7"), "INVALID_ARGUMENT"),
        ("GetDelivery", pb.GetDeliveryRequest(name=f"{PARENT}/events/{UID}"), "INVALID_ARGUMENT"),
        ("GetDelivery", pb.GetDeliveryRequest(name=f"{PARENT}/deliveries/{UID}"), "NOT_FOUND"),
        ("RetryDelivery", pb.RetryDeliveryRequest(name=f"{PARENT}/deliveries/{UID}"), "NOT_FOUND"),
        ("ListDeliveries", pb.ListDeliveriesRequest(parent=PARENT, page_token="x"), "INVALID_ARGUMENT"),
        ("ListDeliveries", pb.ListDeliveriesRequest(parent=PARENT, page_size=-1), "INVALID_ARGUMENT"),
        ("ListDeliveries", pb.ListDeliveriesRequest(parent=PARENT, state=99), "INVALID_ARGUMENT"),  # type: ignore[arg-type]
        ("ListEndpointStates", pb.ListEndpointStatesRequest(parent=PARENT, page_size=-1), "INVALID_ARGUMENT"),
        ("ResetCircuit", pb.ResetCircuitRequest(endpoint=f"{PARENT}/webhookEndpoints/no"), "NOT_FOUND"),
        ("ResetCircuit", pb.ResetCircuitRequest(endpoint="out"), "INVALID_ARGUMENT"),
        ("RecoverEndpoint", pb.RecoverEndpointRequest(endpoint=ENDPOINT), "INVALID_ARGUMENT"),
        ("RecoverEndpoint", pb.RecoverEndpointRequest(endpoint=ENDPOINT, since=OLD), "INVALID_ARGUMENT"),
        ("RecoverEndpoint", pb.RecoverEndpointRequest(endpoint=f"{PARENT}/webhookEndpoints/no", since=Timestamp()), "NOT_FOUND"),
    ],
    ids=lambda each: str(each)[:40],
)  # fmt: skip
async def test_wrong_words_are_refused(method: str, request_: Any, code: str, stub: Stub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await getattr(stub, method)(request_)
    assert refused.value.code().name == code


async def test_another_tenants_deliveries_are_not_there(
    out: DeliveryBench, stub: Stub, tenant_ids: tuple[UUID, UUID]
) -> None:
    (one,) = await dead(out, 1)
    out.tenant_id = tenant_ids[1]
    assert not (await stub.ListDeliveries(pb.ListDeliveriesRequest(parent=PARENT))).deliveries
    calls: tuple[tuple[Any, Any], ...] = (
        (stub.GetDelivery, pb.GetDeliveryRequest(name=name_of(one))),
        (stub.RetryDelivery, pb.RetryDeliveryRequest(name=name_of(one))),
    )
    for call, request in calls:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(request)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await recover(stub)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
