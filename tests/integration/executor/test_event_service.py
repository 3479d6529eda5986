"""EventService over gRPC: published, listed, opened, traced to what came of them, and tests sent."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Value
from tenon.executor.v1 import event_service_pb2 as pb
from tenon.executor.v1 import event_service_pb2_grpc as pb_grpc

from services.chassis import envelope
from services.chassis.ids import uuid7
from services.chassis.secret import MASK
from services.chassis.status import from_rpc_error
from services.executor.events import accepting
from services.executor.events.accepting import Event
from services.executor.ingress.inbound import key_of
from services.executor.registry.credentials import LeasedKey
from services.executor.store import projected
from services.executor.store.projected import ProjectedObject
from tests.integration.executor.delivery_bench import (
    DeliveryBench,
    subscription,
)
from tests.integration.executor.event_calls import event_calls
from tests.integration.executor.ingress_house import Admin

Stub: TypeAlias = "pb_grpc.EventServiceAsyncStub"
PARENT = "tenants/acme"
BLOCKED = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE wait_event_type = 'Lock' AND datname = current_database()"
)


@pytest.fixture
async def stub(out: DeliveryBench) -> AsyncIterator[Stub]:
    async with event_calls(out) as calls:
        yield calls.stub


def new(event_type: str = "invoice.paid", payload: Any = None, **more: Any) -> pb.NewEvent:
    value = ParseDict({"total": 7} if payload is None else payload, Value())
    return pb.NewEvent(type=event_type, payload=value, **more)


async def publish(stub: Stub, *given: pb.NewEvent) -> list[str]:
    request = pb.PublishEventsRequest(parent=PARENT, events=given or [new()])
    return list((await stub.PublishEvents(request)).names)


def connector(name: str, **spec: Any) -> ProjectedObject:
    return ProjectedObject("Connector", uuid4(), name, 0, {"is_active": True, "steps": [], **spec})


async def want(out: DeliveryBench, *objects: ProjectedObject) -> None:
    async with out.database.tenant(out.tenant_id) as tx:
        await projected.replace(tx, out.tenant_id, [out.endpoint, *objects])


async def test_what_is_published_comes_back_as_it_was_told(stub: Stub) -> None:
    payload = {"total": 7, "lines": ["ä", None, 1.5], "paid": True}
    names = await publish(stub, new(payload=payload, key="k-1"), new("user.left", 0))
    assert len(set(names)) == 2 and names[0].startswith(f"{PARENT}/events/")
    first = await stub.GetEvent(pb.GetEventRequest(name=names[0]))
    assert (first.name, first.type, first.key, first.endpoint_uid) == (
        names[0],
        "invoice.paid",
        "k-1",
        "",
    )
    assert json.loads(first.body) == payload and b"7.0" not in first.body
    assert first.HasField("receive_time") and not first.headers
    assert (await stub.GetEvent(pb.GetEventRequest(name=names[1]))).body == b"0"
    again = await publish(stub, new(payload=payload, key="k-1"), new("user.left", 0))
    assert again[0] == names[0] and again[1] != names[1]


async def test_an_event_without_a_payload_says_null(stub: Stub) -> None:
    (name,) = await publish(stub, pb.NewEvent(type="ping"))
    assert (await stub.GetEvent(pb.GetEventRequest(name=name))).body == b"null"


async def test_what_cannot_be_taken_in_leaves_nothing(out: DeliveryBench, stub: Stub) -> None:
    wrong: Sequence[tuple[Sequence[pb.NewEvent], str]] = (
        ([], "events"),
        ([new()] * 101, "events"),
        ([new(), new("no spaces")], "events[1].type"),
        ([new(key="ä")], "events[0].key"),
        ([new(payload="x" * 2**20)], "events"),
        ([pb.NewEvent(type="a", payload=Value(number_value=float("nan")))], "events[0].payload"),
    )
    for given, field in wrong:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.PublishEvents(pb.PublishEventsRequest(parent=PARENT, events=given))
        assert [v.field for v in from_rpc_error(refused.value).violations] == [field]
    assert not (await stub.ListEvents(pb.ListEventsRequest(parent=PARENT))).events
    assert await out.deliveries() == []


async def test_pages_have_each_event_once_the_newest_first_and_tell_no_payload(stub: Stub) -> None:
    names = await publish(stub, *(new("even" if n % 2 else "odd") for n in range(7)))
    for event_type, wanted in (("", names), ("even", names[1::2])):
        found: list[pb.Event] = []
        token = ""
        while token or not found:
            asked = pb.ListEventsRequest(
                parent=PARENT, page_size=2, page_token=token, type=event_type
            )
            answer = await stub.ListEvents(asked)
            found += answer.events
            token = answer.next_page_token
        assert [each.name for each in found] == wanted[::-1]
        assert not any(each.body for each in found)
    foreign = pb.ListEventsRequest(parent=PARENT, page_size=2, type="odd")
    token = (await stub.ListEvents(foreign)).next_page_token
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.ListEvents(pb.ListEventsRequest(parent=PARENT, page_token=token))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_event_opens_by_the_key_it_was_sealed_with_and_says_when_that_is_gone(
    out: DeliveryBench, stub: Stub
) -> None:
    (name,) = await publish(stub)
    out.keys.replace_key()
    assert (await stub.GetEvent(pb.GetEventRequest(name=name))).body == b'{"total":7}'
    for gone in ({}, {key: LeasedKey(key, envelope.new_key()) for key in out.keys.retired}):
        out.keys.retired = gone
        calls: tuple[tuple[Any, Any], ...] = (
            (stub.GetEvent, pb.GetEventRequest(name=name)),
            (stub.TraceEvent, pb.TraceEventRequest(name=name)),
        )
        for call, request in calls:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(request)
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert from_rpc_error(refused.value).code == "PAYLOAD_UNREADABLE"


async def test_a_trace_has_each_subscriptions_answer_and_what_was_begun(
    out: DeliveryBench, stub: Stub
) -> None:
    inbound = ProjectedObject("WebhookEndpoint", uuid4(), "in", 0, {"direction": "INBOUND"})
    asleep = replace(
        out.endpoint,
        name="asleep",
        object_id=uuid4(),
        spec={**out.endpoint.spec, "is_active": False},
    )
    runs = {"connector": "c", "deliver_to": ""}
    routed = [
        subscription("a-delivers"),
        subscription("b-runs", **runs),
        subscription("c-waits", deliver_to="asleep"),
        subscription("d-off", is_active=False),
        subscription("e-elsewhere", endpoint="in"),
        subscription("f-others", event_types=["user.*"]),
        subscription("g-filtered", filter="event.payload.total > 7"),
        subscription("h-faulty", filter="event.payload.absent == 7"),
        subscription("i-idle", connector="idle", deliver_to=""),
        subscription("j-gone", connector="gone", deliver_to=""),
        subscription("k-gone", deliver_to="gone"),
        subscription("l-untold", transform={"id": "${event.payload.absent}"}),
    ]
    await want(out, inbound, asleep, connector("c"), connector("idle", is_active=False), *routed)
    (name,) = await publish(stub)
    traced = await stub.TraceEvent(pb.TraceEventRequest(name=name))
    assert [(each.subscription, each.takes, each.reason) for each in traced.subscriptions] == [
        ("a-delivers", True, ""),
        ("b-runs", True, ""),
        ("c-waits", True, "TARGET_INACTIVE"),
        ("d-off", False, "INACTIVE"),
        ("e-elsewhere", False, "OTHER_SOURCE"),
        ("f-others", False, "OTHER_TYPE"),
        ("g-filtered", False, "FILTERED"),
        ("h-faulty", False, "FILTER_FAILED"),
        ("i-idle", False, "TARGET_INACTIVE"),
        ("j-gone", False, "TARGET_GONE"),
        ("k-gone", False, "TARGET_GONE"),
        ("l-untold", False, "TRANSFORM_FAILED"),
    ]
    faults = {each.subscription: each.message for each in traced.subscriptions if each.message}
    assert faults.keys() == {"h-faulty", "l-untold"} and "absent" in faults["h-faulty"]
    assert traced.event.name == name and not traced.event.body
    assert traced.deliveries == [
        f"{PARENT}/deliveries/{each.id}"
        for each in await out.deliveries()
        if each.subscription in {"a-delivers", "c-waits"}
    ]
    assert len(traced.deliveries) == 2
    assert len(traced.executions) == 1
    assert traced.executions[0].startswith(f"{PARENT}/executions/")


async def test_a_webhooks_trace_asks_those_that_are_subscribed_to_its_endpoint(
    out: DeliveryBench, stub: Stub
) -> None:
    spec = {"direction": "INBOUND", "is_active": True}
    inbound = ProjectedObject("WebhookEndpoint", uuid4(), "in", 0, spec)
    hears = subscription("hears", endpoint="in", filter="event.headers['x-kind'] == 'a'")
    await want(out, inbound, hears, subscription("other"))
    event = Event(out.tenant_id, inbound, "push", "d-1", {"x-kind": "a"}, None, b"no json")
    async with out.database.tenant(out.tenant_id) as tx:
        await accepting.accept(tx, [accepting.draft(event, [], out.keys.key)])
    request = pb.TraceEventRequest(name=f"{PARENT}/events/{event.id}")
    traced = await stub.TraceEvent(request)
    assert traced.event.endpoint_uid == str(inbound.object_id)
    assert not traced.deliveries and not traced.executions
    assert [(each.subscription, each.reason) for each in traced.subscriptions] == [
        ("hears", ""),
        ("other", "OTHER_SOURCE"),
    ]
    # With its endpoint gone, nobody can be subscribed to it.
    await want(out, hears, subscription("other"))
    traced = await stub.TraceEvent(request)
    assert {each.reason for each in traced.subscriptions} == {"OTHER_SOURCE"}


async def test_a_test_reaches_its_endpoint_alone_whatever_is_subscribed(
    out: DeliveryBench, stub: Stub
) -> None:
    await out.want(subscription("all"), subscription("tests", event_types=["tenon.test"]))
    request = pb.SendTestEventRequest(endpoint=f"{PARENT}/webhookEndpoints/out")
    sent = (await stub.SendTestEvent(request)).delivery
    async with out.working():
        (found,) = await out.until(lambda all_: [d.state for d in all_] == ["success"])
    assert sent == f"{PARENT}/deliveries/{found.id}"
    assert (found.event_type, found.subscription) == ("tenon.test", "")
    (got,) = out.receiver.got
    assert json.loads(got.body)["type"] == "tenon.test"
    (event,) = (await stub.ListEvents(pb.ListEventsRequest(parent=PARENT))).events
    assert event.name == f"{PARENT}/events/{found.event_id}" and event.type == "tenon.test"


@pytest.mark.parametrize(
    ("endpoint", "code", "reason"),
    [
        ("absent", "NOT_FOUND", "NOT_FOUND"),
        ("in", "FAILED_PRECONDITION", "ENDPOINT_INBOUND"),
        ("out", "FAILED_PRECONDITION", "ENDPOINT_INACTIVE"),
        ("A b", "INVALID_ARGUMENT", "BAD_NAME"),
    ],
)
async def test_a_test_is_for_active_outbound_endpoints(
    endpoint: str, code: str, reason: str, out: DeliveryBench, stub: Stub
) -> None:
    out.endpoint = replace(out.endpoint, spec={**out.endpoint.spec, "is_active": False})
    await want(out, ProjectedObject("WebhookEndpoint", uuid4(), "in", 0, {"direction": "INBOUND"}))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.SendTestEvent(
            pb.SendTestEventRequest(endpoint=f"{PARENT}/webhookEndpoints/{endpoint}")
        )
    assert (refused.value.code().name, from_rpc_error(refused.value).code) == (code, reason)
    assert not (await stub.ListEvents(pb.ListEventsRequest(parent=PARENT))).events


async def test_another_tenants_events_are_not_there(
    out: DeliveryBench, stub: Stub, tenant_ids: tuple[UUID, UUID]
) -> None:
    (name,) = await publish(stub)
    out.tenant_id = tenant_ids[1]
    assert not (await stub.ListEvents(pb.ListEventsRequest(parent=PARENT))).events
    calls: tuple[tuple[Any, Any], ...] = (
        (stub.GetEvent, pb.GetEventRequest(name=name)),
        (stub.TraceEvent, pb.TraceEventRequest(name=name)),
    )
    for call, request in calls:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(request)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_two_who_publish_the_same_in_opposite_order_do_not_stand_in_each_others_way(
    out: DeliveryBench, stub: Stub, admin: Admin
) -> None:
    async def waiting(many: int) -> None:
        async with asyncio.timeout(20):
            while (await (await admin.execute(BLOCKED)).fetchone()) != (many,):
                await asyncio.sleep(0.01)

    key = await out.keys.lease_key(out.tenant_id)
    held = Event(out.tenant_id, None, "invoice.paid", "m", {}, {}, b"{}")
    async with out.database.tenant(out.tenant_id) as tx:
        await accepting.accept(tx, [accepting.draft(held, [], key)])
        calls = []
        # Each has taken its first one in when it comes to the one that is held.
        for count, keys in enumerate((["a", "m", "z"], ["z", "m", "a"]), start=1):
            given = [new(key=each) for each in keys]
            calls.append(asyncio.create_task(publish(stub, *given)))
            await waiting(count)
    there, back = await asyncio.gather(*calls)
    assert there == back[::-1]
    assert there[1] == f"{PARENT}/events/{held.id}"


async def test_what_an_inbound_endpoint_redacts_is_masked_in_what_is_shown_and_nowhere_else(
    out: DeliveryBench, stub: Stub
) -> None:
    door = ProjectedObject("WebhookEndpoint", uuid4(), "in", 0, {"redact": ["$.user.email"]})
    names = []
    bodies = (b'{"user": {"email": "zoe@example.com"}, "n": 1.0}', b"email=zoe@example.com")
    key = await out.keys.lease_key(out.tenant_id)
    for number, body in enumerate(bodies):
        given = f"k{number}" if number else key_of(body)
        event = Event(out.tenant_id, door, "user.joined", given, {}, None, body, uuid7())
        async with out.database.tenant(out.tenant_id) as tx:
            await accepting.accept(tx, [accepting.draft(event, [], key)])
        names.append(f"{PARENT}/events/{event.id}")

    async def got(*objects: ProjectedObject) -> list[tuple[bytes, bool]]:
        await want(out, *objects)
        found = [await stub.GetEvent(pb.GetEventRequest(name=name)) for name in names]
        return [(each.body, each.redacted) for each in found]

    async def keys() -> list[tuple[str, ...]]:
        """Each event's, newest first, wherever it is shown."""
        page = await stub.ListEvents(pb.ListEventsRequest(parent=PARENT))
        traces = [await stub.TraceEvent(pb.TraceEventRequest(name=e.name)) for e in page.events]
        found = [await stub.GetEvent(pb.GetEventRequest(name=e.name)) for e in page.events]
        shown = zip(page.events, [each.event for each in traces], found, strict=True)
        return [tuple(each.key for each in one) for one in shown]

    masked = f'{{"user":{{"email":"{MASK}"}},"n":1.0}}'.encode()
    assert await got(door) == [(masked, True), (b"", True)]
    # By the key that is made of the whole body what is masked could be guessed.
    assert await keys() == [("k1",) * 3, ("",) * 3]
    # It is what the endpoint says now that counts: what is stored is as it came.
    assert await got(replace(door, spec={"redact": []})) == [(body, False) for body in bodies]
    assert await keys() == [("k1",) * 3, (key_of(bodies[0]),) * 3]
    # Whatever an endpoint that has gone kept back, nobody knows now.
    assert await got(replace(door, object_id=uuid4())) == [(b"", True), (b"", True)]
    # What people are not shown, subscriptions see.
    away = subscription("away", endpoint="in", filter='event.payload.user.email != ""')
    await want(out, door, away)
    traced = await stub.TraceEvent(pb.TraceEventRequest(name=names[0]))
    assert [each.takes for each in traced.subscriptions] == [True]
