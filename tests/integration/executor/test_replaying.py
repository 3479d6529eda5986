"""ReplayEvents: what came in before is routed again, by today's subscriptions, and only once."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import grpc
import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tenon.executor.v1 import event_service_pb2 as pb

from services.chassis.ids import uuid7_time
from services.chassis.secret import MASK
from services.chassis.status import from_rpc_error
from services.executor.engine import steering
from services.executor.engine.steering import Limits
from services.executor.events import accepting, replaying
from services.executor.events.accepting import Event
from services.executor.events.replaying import SETTLED
from services.executor.store import positions, projected
from services.executor.store.projected import ProjectedObject
from tests.integration.executor.delivery_bench import DeliveryBench, subscription
from tests.integration.executor.event_calls import PARENT, EventCalls, event_calls

Admin = psycopg.AsyncConnection[Any]
BATCHES = 3
PAGE = 2
LANE = {"concurrency": 4, "rate_per_minute": 0, "ordering": "none"}


@pytest.fixture
async def out(out: DeliveryBench) -> DeliveryBench:
    """One to which nobody is subscribed yet."""
    await out.want(subscription("off", is_active=False))
    return out


@pytest.fixture
async def calls(out: DeliveryBench, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EventCalls]:
    monkeypatch.setattr(positions, "PAGE", PAGE)
    async with event_calls(out, most=BATCHES * PAGE) as made:
        yield made


async def replay(
    calls: EventCalls, request_id: UUID | str = "", since: datetime | None = None, **said: Any
) -> pb.ReplayEventsResponse:
    moment = Timestamp()
    moment.FromDatetime(since or datetime.now(UTC) - timedelta(hours=1))
    until = said.pop("until", None)
    request = pb.ReplayEventsRequest(
        parent=PARENT, request_id=str(request_id), since=moment, **said
    )
    if until is not None:
        request.until.FromDatetime(until)
    return await calls.stub.ReplayEvents(request)


async def works(admin: Admin) -> tuple[int, int]:
    """How much is to be done, and for how many events."""
    rows = await admin.execute(
        "SELECT count(*), count(DISTINCT event_id) FROM executor.work"
        " JOIN executor.deliveries ON id = target_id"
    )
    (row,) = await rows.fetchall()
    return row[0], row[1]


async def told_to_audit(admin: Admin) -> list[dict[str, Any]]:
    rows = await admin.execute("SELECT event FROM executor.audit_outbox ORDER BY id")
    return [row[0] for row in await rows.fetchall()]


async def test_events_go_where_todays_subscriptions_take_them(
    out: DeliveryBench, calls: EventCalls, admin: Admin
) -> None:
    connector = ProjectedObject(
        "Connector", uuid4(), "c", 0, {"is_active": True, "steps": [], "lane": LANE}
    )
    ids = [await out.publish(*each) for each in (("invoice.paid", {"total": 7}), ("user.left", 0))]
    assert await out.deliveries() == []
    routed = [
        subscription("delivers", event_types=["invoice.*"]),
        subscription("runs", connector="c", deliver_to=""),
        subscription("others", filter="event.payload == 1"),
    ]
    async with out.database.tenant(out.tenant_id) as tx:
        await projected.replace(tx, out.tenant_id, [out.endpoint, connector, *routed])
    request_id, since = uuid4(), datetime.now(UTC) - timedelta(hours=1)
    would = await replay(calls, since=since, validate_only=True)
    assert (would.events, would.deliveries, would.executions) == (2, 1, 2)
    assert await out.deliveries() == [] and await told_to_audit(admin) == []
    done = await replay(calls, request_id, since)
    assert (done.events, done.deliveries, done.executions) == (2, 1, 2)
    assert not done.next_page_token and done.reach_time.ToDatetime(UTC) > since
    (delivery,) = await out.deliveries()
    assert (delivery.event_id, delivery.subscription) == (ids[0], "delivers")
    runs = await admin.execute("SELECT trigger_id FROM executor.executions ORDER BY trigger_id")
    assert [row[0] for row in await runs.fetchall()] == ids
    (told,) = await told_to_audit(admin)
    assert (told["action"], told["kind"], told["object"]) == ("replay", "Event", str(request_id))
    assert {"path": "count", "after": "2"} in told["fields"]


async def test_a_receiver_knows_what_is_delivered_again(
    out: DeliveryBench, calls: EventCalls
) -> None:
    await out.want()
    event_id = await out.publish()
    request_id = uuid4()
    since = datetime.now(UTC) - timedelta(hours=1)
    async with out.working():
        await out.until(lambda found: [d.state for d in found] == ["success"])
        assert (await replay(calls, request_id, since)).deliveries == 1
        await out.until(lambda found: [d.state for d in found] == ["success"] * 2)
        # Of a replay of what was replayed, too; another subscription's is another message.
        await out.want(subscription("all"), subscription("new"))
        assert (await replay(calls, uuid4(), since)).deliveries == 2
        found = await out.until(lambda found: [d.state for d in found] == ["success"] * 4)
    assert {each.event_id for each in found} == {event_id}
    assert len({each.id for each in found}) == 4
    by_id: dict[str, int] = {}
    for got in out.receiver.got:
        by_id[got.headers["webhook-id"]] = by_id.get(got.headers["webhook-id"], 0) + 1
    assert sorted(by_id.values()) == [1, 3]
    assert by_id[f"evt_{found[0].id}"] == 3
    assert len({got.body for got in out.receiver.got}) == 1


async def test_what_is_asked_for_is_replayed_and_nothing_else(
    out: DeliveryBench, calls: EventCalls
) -> None:
    spec = {"direction": "INBOUND", "is_active": True}
    inbound = ProjectedObject("WebhookEndpoint", uuid4(), "in", 0, spec)
    ids = [await out.publish(payload={"n": n}) for n in range(4)]
    left = await out.publish("user.left", {"n": 9})
    hook = Event(out.tenant_id, inbound, "push", "d-1", {}, {"n": 7}, b'{"n":7}')
    async with out.database.tenant(out.tenant_id) as tx:
        await accepting.accept(tx, [accepting.draft(hook, [], out.keys.key)])
        wanted = [subscription("all"), subscription("one"), subscription("hook", endpoint="in")]
        await projected.replace(tx, out.tenant_id, [out.endpoint, inbound, *wanted])
    moments = [uuid7_time(each) for each in ids]
    cases: tuple[tuple[dict[str, Any], tuple[int, int]], ...] = (
        ({}, (6, 11)),
        ({"types": ["user.*"]}, (1, 2)),
        ({"filter": "event.payload.n > 2 && event.payload.n < 8"}, (2, 3)),
        ({"endpoint": "in"}, (1, 1)),
        ({"subscription": "one"}, (5, 5)),
        ({"subscription": "hook"}, (1, 1)),
        ({"since": uuid7_time(left) + timedelta(hours=1)}, (0, 0)),
        ({"until": moments[0]}, (0, 0)),
    )
    for said, counts in cases:
        found = await replay(calls, validate_only=True, **said)
        assert (found.events, found.deliveries) == counts, said
    assert await out.deliveries() == []


async def test_a_condition_sees_no_more_than_the_caller_is_shown(
    out: DeliveryBench, calls: EventCalls
) -> None:
    spec = {"direction": "INBOUND", "is_active": True, "redact": ["$.email"]}
    door = ProjectedObject("WebhookEndpoint", uuid4(), "in", 0, spec)
    body = b'{"email":"zoe@example.com"}'
    hook = Event(out.tenant_id, door, "push", "d-1", {}, None, body)
    async with out.database.tenant(out.tenant_id) as tx:
        await accepting.accept(tx, [accepting.draft(hook, [], out.keys.key)])
        condition = "event.payload.email == 'zoe@example.com'"
        exact = subscription("exact", endpoint="in", filter=condition)
        await projected.replace(tx, out.tenant_id, [out.endpoint, door, exact])
    # A subscription's condition is not the caller's: it sees all.
    assert (await replay(calls, validate_only=True)).events == 1
    assert (await replay(calls, validate_only=True, filter=condition)).events == 0
    masked = f"event.payload.email == '{MASK}'"
    assert (await replay(calls, validate_only=True, filter=masked)).events == 1


async def test_an_end_that_lies_ahead_is_that_of_the_first_call(
    out: DeliveryBench, calls: EventCalls, admin: Admin
) -> None:
    await out.publish()
    await out.want()
    request_id, since = uuid4(), datetime.now(UTC) - timedelta(hours=1)
    until = datetime.now(UTC) + timedelta(hours=1)
    assert (await replay(calls, request_id, since, until=until)).events == 1
    # What comes in later has gone its own way.
    await out.publish()
    assert (await replay(calls, request_id, since, until=until)).events == 1
    assert await works(admin) == (2, 2)


async def test_what_may_still_be_on_its_way_is_left_to_another_replay(
    out: DeliveryBench, calls: EventCalls
) -> None:
    await out.publish()
    await out.want()
    calls.ahead = timedelta()
    assert (await replay(calls, validate_only=True)).events == 0
    calls.ahead = SETTLED
    assert (await replay(calls, validate_only=True)).events == 1


async def test_a_call_that_takes_long_leaves_the_rest_to_another_one(
    out: DeliveryBench, calls: EventCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        await out.publish()
    await out.want()
    monkeypatch.setattr(replaying, "LONGEST_S", 0.0)
    since, token, counts = datetime.now(UTC) - timedelta(hours=1), "", list[int]()
    while not counts or token:
        found = await replay(calls, since=since, validate_only=True, page_token=token)
        counts.append(found.events)
        token = found.next_page_token
    assert counts == [1, 2, 3, 3]


async def test_a_batch_takes_no_more_than_its_part_of_a_small_quota(
    out: DeliveryBench, calls: EventCalls, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(positions, "PAGE", 100)
    for _ in range(5):
        await out.publish()
    await out.want()
    async with out.database.tenant(out.tenant_id) as tx:
        await steering.govern(tx, out.tenant_id, Limits(work_per_hour=5))
    # Something of the quota is always used up.
    await out.publish("user.left")
    request_id, since = uuid4(), datetime.now(UTC) - timedelta(hours=1)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await replay(calls, request_id, since, types=["invoice.paid"])
    assert from_rpc_error(refused.value).code == "WORK_QUOTA_EXHAUSTED"
    assert (await works(admin))[0] == 5
    await admin.execute("UPDATE executor.tenant_lanes SET quota_at = now() - interval '1 hour'")
    assert (await replay(calls, request_id, since, types=["invoice.paid"])).events == 5
    assert (await works(admin))[0] == 6


async def test_a_test_of_an_endpoint_is_not_routed_to_others(
    out: DeliveryBench, calls: EventCalls
) -> None:
    await out.want()
    await calls.stub.SendTestEvent(
        pb.SendTestEventRequest(endpoint=f"{PARENT}/webhookEndpoints/out")
    )
    assert (await replay(calls, uuid4())).events == 0
    assert len(await out.deliveries()) == 1


async def test_a_large_replay_goes_on_call_by_call_and_adds_up(
    out: DeliveryBench, calls: EventCalls, admin: Admin
) -> None:
    count = PAGE * BATCHES + 3
    for _ in range(count):
        await out.publish()
    await out.want()
    since = datetime.now(UTC) - timedelta(hours=1)
    for request_id in ("", uuid4()):
        said: dict[str, Any] = {"since": since, "validate_only": not request_id}
        first = await replay(calls, request_id, **said)
        assert first.events == PAGE * BATCHES and first.next_page_token
        # What comes in meanwhile goes its own way.
        await out.want(subscription("off", is_active=False))
        await out.publish()
        await out.want()
        rest = await replay(calls, request_id, **said, page_token=first.next_page_token)
        assert (rest.events, rest.next_page_token) == (count + bool(request_id), "")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await replay(calls, request_id, **said, types=["a"], page_token=first.next_page_token)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await works(admin) == (count + 1, count + 1)


async def test_a_replay_that_is_cut_short_is_gone_on_with_and_begins_nothing_twice(
    out: DeliveryBench, calls: EventCalls, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = PAGE * BATCHES
    for _ in range(count):
        await out.publish()
    await out.want()
    async with out.database.tenant(out.tenant_id) as tx:
        # What two batches take is all that the quota holds.
        await steering.govern(tx, out.tenant_id, Limits(work_per_hour=2 * PAGE))
    monkeypatch.setattr(replaying, "OF_QUOTA", 2)
    request_id, since = uuid4(), datetime.now(UTC) - timedelta(hours=1)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await replay(calls, request_id, since)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await works(admin) == (2 * PAGE, 2 * PAGE)
    assert len(await told_to_audit(admin)) == 2
    async with out.database.tenant(out.tenant_id) as tx:
        await steering.govern(tx, out.tenant_id, Limits())
    # The same request, by somebody who saw no answer and has no token.
    for _ in range(2):
        done = await replay(calls, request_id, since)
        if done.next_page_token:
            done = await replay(calls, request_id, since)
        assert (done.events, done.deliveries, done.next_page_token) == (count, count, "")
    assert await works(admin) == (count, count)


async def test_two_who_go_on_with_one_replay_begin_each_event_once(
    out: DeliveryBench, calls: EventCalls, admin: Admin
) -> None:
    count = PAGE * BATCHES
    for _ in range(count):
        await out.publish()
    await out.want()
    request_id, since = uuid4(), datetime.now(UTC) - timedelta(hours=1)
    await asyncio.gather(*(replay(calls, request_id, since) for _ in range(4)))
    assert (await replay(calls, request_id, since)).events == count
    assert await works(admin) == (count, count)


async def test_a_request_id_is_one_replays_for_good(out: DeliveryBench, calls: EventCalls) -> None:
    request_id, since = uuid4(), datetime.now(UTC) - timedelta(hours=1)
    await replay(calls, request_id, since)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await replay(calls, request_id, since, types=["other"])
    assert from_rpc_error(refused.value).code == "REQUEST_ID_REUSED"


async def test_what_does_not_open_is_counted_and_passed_over(
    out: DeliveryBench, calls: EventCalls
) -> None:
    await out.publish()
    out.keys.replace_key()
    out.keys.retired = {}
    await out.publish()
    await out.want()
    done = await replay(calls, uuid4())
    assert (done.events, done.unreadable) == (1, 1)


async def test_a_tenant_that_is_disabled_meanwhile_begins_nothing(
    out: DeliveryBench, calls: EventCalls, admin: Admin
) -> None:
    for _ in range(PAGE * BATCHES + 1):
        await out.publish()
    await out.want()
    begun, since = uuid4(), datetime.now(UTC) - timedelta(hours=1)
    assert (await replay(calls, begun, since)).next_page_token
    await admin.execute("UPDATE executor.tenants SET enabled = false")
    for request_id in (begun, uuid4()):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await replay(calls, request_id, since)
        assert from_rpc_error(refused.value).code == "TENANT_DISABLED"
    assert await works(admin) == (PAGE * BATCHES, PAGE * BATCHES)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"request_id": ""}, "INVALID_ARGUMENT"),
        ({"request_id": "7"}, "INVALID_ARGUMENT"),
        ({"filter": "nothing"}, "INVALID_ARGUMENT"),
        ({"types": [""]}, "INVALID_ARGUMENT"),
        ({"page_token": "x"}, "INVALID_ARGUMENT"),
        ({"since": datetime(1969, 1, 1, tzinfo=UTC)}, "INVALID_ARGUMENT"),
        ({"until": datetime(1999, 1, 1, tzinfo=UTC)}, "INVALID_ARGUMENT"),
        ({"endpoint": "absent"}, "NOT_FOUND"),
        ({"subscription": "absent"}, "NOT_FOUND"),
    ],
)
async def test_wrong_words_are_refused(said: dict[str, Any], code: str, calls: EventCalls) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await replay(calls, **{"request_id": str(uuid4()), **said})
    assert refused.value.code().name == code
