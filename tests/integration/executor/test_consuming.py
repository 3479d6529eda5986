"""SubscribeEvents and AcknowledgeEvents: what consumers are told, alone and in groups."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import grpc
import psycopg
import pytest
from tenon.executor.v1 import event_service_pb2 as pb

from services.chassis.errors import PermissionDenied
from services.chassis.secret import MASK
from services.chassis.status import from_rpc_error
from services.executor.events import accepting, consuming, retelling
from services.executor.events.accepting import PUBLISHED, Event
from services.executor.ingress.inbound import key_of
from services.executor.store import positions
from services.executor.store.consumer_groups import Group
from services.executor.store.projected import ProjectedObject
from tests.integration.executor.delivery_bench import DeliveryBench, subscription
from tests.integration.executor.event_calls import PARENT, EventCalls, event_calls, uid_of

Admin = psycopg.AsyncConnection[Any]
OLDEST = pb.SubscribeEventsRequest.START_OLDEST
NEWEST = pb.SubscribeEventsRequest.START_NEWEST


@pytest.fixture
async def out(out: DeliveryBench) -> DeliveryBench:
    """One to which nobody is subscribed: consumers need no subscription."""
    await out.want(subscription("none", is_active=False))
    return out


@pytest.fixture
async def calls(out: DeliveryBench, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EventCalls]:
    monkeypatch.setattr(consuming, "TURN_S", 0.1)
    async with event_calls(out) as made:
        yield made


class Consumer:
    """One that reads as soon as it is told."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.told: list[pb.SubscribeEventsResponse] = []
        self.ended: grpc.aio.AioRpcError | None = None
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for each in self.call:
                self.told.append(each)
        except grpc.aio.AioRpcError as error:
            self.ended = error
        except asyncio.CancelledError:
            pass

    @property
    def events(self) -> list[UUID]:
        return [uid_of(each.event) for each in self.told if each.HasField("event")]

    def position_of(self, event_id: UUID) -> str:
        return next(
            each.position
            for each in self.told
            if each.HasField("event") and uid_of(each.event) == event_id
        )

    async def until(self, holds: Callable[[], bool], within_s: float = 8.0) -> None:
        deadline = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < deadline, (self.events, self.ended)
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self.call.cancel()
        await asyncio.wait([self._task])

    async def end(self) -> None:
        """Wait until the server has ended the stream."""
        await asyncio.wait_for(asyncio.shield(self._task), 5)


@asynccontextmanager
async def consumer(calls: EventCalls, **said: Any) -> AsyncIterator[Consumer]:
    start: dict[str, Any] = {} if said.keys() & {"start", "position"} else {"start": OLDEST}
    request = pb.SubscribeEventsRequest(parent=PARENT, **start, **said)
    made = Consumer(calls.stub.SubscribeEvents(request))
    try:
        yield made
    finally:
        await made.stop()


async def acknowledge(calls: EventCalls, position: str, **said: Any) -> str:
    request = pb.AcknowledgeEventsRequest(
        parent=PARENT, **{"group": "billing", "position": position, **said}
    )
    return (await calls.stub.AcknowledgeEvents(request)).position


async def holder_of(admin: Admin) -> Any:
    (row,) = await (await admin.execute("SELECT claim_id FROM executor.consumer_groups")).fetchall()
    return row[0]


async def test_what_an_endpoint_lets_nobody_see_no_consumer_is_told(
    out: DeliveryBench, calls: EventCalls
) -> None:
    door = ProjectedObject("WebhookEndpoint", uuid4(), "in", 0, {"redact": ["$.user.email"]})
    await out.want(subscription("none", is_active=False), door)
    body = b'{"user":{"email":"zoe@example.com"}}'
    event = Event(out.tenant_id, door, "user.joined", key_of(body), {}, None, body)
    key = await out.keys.lease_key(out.tenant_id)
    async with out.database.tenant(out.tenant_id) as tx:
        await accepting.accept(tx, [accepting.draft(event, [], key)])
    async with consumer(calls) as one:
        await one.until(lambda: len(one.told) == 1)
        (told,) = one.told
        assert told.event.body == f'{{"user":{{"email":"{MASK}"}}}}'.encode()
        assert told.event.redacted
        # Whoever knows the rest could find the address by this.
        assert told.event.key == ""
    # Nor can they ask for it by a condition.
    last = await out.publish("last")
    asked = "event.type == 'last' || event.payload.user.email == '{}'"
    async with (
        consumer(calls, filter=asked.format("zoe@example.com")) as exact,
        consumer(calls, filter=asked.format(MASK)) as masked,
    ):
        await exact.until(lambda: last in exact.events)
        await masked.until(lambda: last in masked.events)
        assert (exact.events, masked.events) == ([last], [event.id, last])
    # Once the endpoint has gone nobody knows any more what it kept back.
    await out.want(subscription("none", is_active=False))
    async with consumer(calls) as later, consumer(calls, filter=asked.format(MASK)) as choosy:
        await later.until(lambda: len(later.told) == 2)
        assert [(each.event.body, each.event.redacted) for each in later.told] == [
            (b"", True),
            (b'{"total":7}', False),
        ]
        await choosy.until(lambda: choosy.events == [last])


async def test_a_test_of_an_endpoint_is_told_to_who_asks_for_it(
    out: DeliveryBench, calls: EventCalls
) -> None:
    await calls.stub.SendTestEvent(
        pb.SendTestEventRequest(endpoint=f"{PARENT}/webhookEndpoints/out")
    )
    last = await out.publish()
    async with consumer(calls) as one, consumer(calls, types=["tenon.test"]) as asking:
        await one.until(lambda: last in one.events)
        assert one.events == [last]
        await asking.until(lambda: [each.event.type for each in asking.told] == ["tenon.test"])


async def test_a_consumer_is_told_what_was_there_and_then_what_comes_as_it_came(
    out: DeliveryBench, calls: EventCalls
) -> None:
    before = [await out.publish(payload={"n": n}) for n in range(3)]
    async with consumer(calls) as one, consumer(calls, start=NEWEST) as late:
        await one.until(lambda: len(one.told) == 3)
        began = time.monotonic()
        after = await out.publish("user.left", {"n": 3})
        await one.until(lambda: len(one.told) == 4)
        assert time.monotonic() - began < 0.5
        assert one.events == [*before, after]
        await late.until(lambda: after in late.events)
        last = one.told[-1].event
        assert (last.type, last.body, last.endpoint_uid) == ("user.left", b'{"n":3}', "")
        assert last.key and last.HasField("receive_time")
        async with consumer(calls, position=one.position_of(before[1])) as again:
            await again.until(lambda: len(again.told) == 2)
            assert again.events == [before[2], after]
        calls.arrivals.close()
        await one.end()
        assert one.ended is None


async def test_what_commits_late_is_told_and_nothing_that_came_after_it_before(
    out: DeliveryBench, calls: EventCalls
) -> None:
    first = await out.publish()
    late = Event(out.tenant_id, None, "late", "k", {}, None, b"null")
    drafted = accepting.draft(late, [], out.keys.key)
    async with consumer(calls) as one:
        async with out.database.tenant(out.tenant_id) as tx:
            await accepting.accept(tx, [drafted])
            # Its id is older, its transaction ends later.
            second = await out.publish()
            async with consumer(calls) as two:
                await two.until(lambda: len(two.told) == 1)
                newest = await out.publish()
                await asyncio.sleep(0.1)
                assert one.events == two.events == [first]
        await one.until(lambda: len(one.told) == 4)
        assert one.events == [first, late.id, second, newest]


async def test_types_and_a_condition_choose_and_the_position_goes_on_over_the_rest(
    out: DeliveryBench, calls: EventCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consuming, "SIGN_S", 0.05)
    said = [
        ("invoice.paid", {"total": 7}),
        ("invoice.paid", {"total": 1}),
        ("invoice.paid", {}),
        ("user.left", {"total": 9}),
        ("invoice", {"total": 8}),
        ("user.left", {"total": 9}),
    ]
    ids = [await out.publish(*each) for each in said]
    condition = "event.payload.total > 5"
    async with consumer(calls, types=["invoice.*"], filter=condition) as one:
        await one.until(lambda: len(one.told) > 2)
        assert one.events == [ids[0], ids[4]]
        sign = one.told[2]
        assert not sign.HasField("event")
        async with consumer(calls, position=sign.position) as rest:
            last = await out.publish()
            await rest.until(lambda: bool(rest.events))
            assert rest.events == [last]


async def test_of_a_group_one_is_told_and_the_next_goes_on_from_what_is_acknowledged(
    out: DeliveryBench, calls: EventCalls
) -> None:
    ids = [await out.publish() for _ in range(4)]
    async with consumer(calls, group="billing") as one:
        await one.until(lambda: len(one.told) == 4)
        async with consumer(calls, group="billing") as two:
            position = one.position_of(ids[1])
            assert await acknowledge(calls, position) == position
            await asyncio.sleep(0.1)
            assert two.told == []
            await one.stop()
            await two.until(lambda: len(two.told) == 2)
            ids.append(await out.publish())
            await two.until(lambda: len(two.told) == 3)
            assert two.events == ids[2:]
    # Of two groups each has its own position.
    async with consumer(calls, group="ledger") as other:
        await other.until(lambda: other.events == ids)


async def test_who_is_stuck_loses_its_turn_and_takes_it_again_from_what_is_acknowledged(
    out: DeliveryBench, calls: EventCalls, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [await out.publish()]
    monkeypatch.setattr(consuming, "KEEP_S", 60.0)
    async with consumer(calls, group="billing") as one:
        await one.until(lambda: len(one.told) == 1)
        async with consumer(calls, group="billing") as two:
            first = await holder_of(admin)
            await admin.execute("UPDATE executor.consumer_groups SET lease_until = now()")
            await two.until(lambda: len(two.told) == 1)
            assert await holder_of(admin) != first
            await acknowledge(calls, two.position_of(ids[0]))
            monkeypatch.setattr(consuming, "KEEP_S", 0.0)
            await asyncio.sleep(0.1)
            ids.append(await out.publish())
            await two.until(lambda: two.events == ids)
        await one.until(lambda: len(one.told) >= 2)
        assert one.events[1:] == [ids[1]] or one.events[1:] == [ids[1], ids[1]]


async def test_who_acknowledges_keeps_its_turn_and_who_leaves_gives_it_back(
    out: DeliveryBench, calls: EventCalls, admin: Admin
) -> None:
    await out.publish()
    async with consumer(calls, group="billing") as one:
        await one.until(lambda: len(one.told) == 1)
        await admin.execute("UPDATE executor.consumer_groups SET lease_until = now()")
        await acknowledge(calls, one.told[0].position)
        left = "SELECT lease_until > now() + interval '25 s' FROM executor.consumer_groups"
        assert await (await admin.execute(left)).fetchall() == [(True,)]
    deadline = time.monotonic() + 5
    while await holder_of(admin) is not None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_group_goes_back_only_where_it_is_told_to(
    out: DeliveryBench, calls: EventCalls, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consuming, "KEEP_S", 0.0)
    ids = [await out.publish() for _ in range(3)]
    async with consumer(calls, group="billing") as one:
        await one.until(lambda: len(one.told) == 3)
        first, last = one.position_of(ids[0]), one.position_of(ids[2])
        assert await acknowledge(calls, last) == last
        assert await acknowledge(calls, first) == last
        back = await acknowledge(calls, first, reset=True)
        assert back == f"{first}.1"
        # Whoever is at work with what was told before does not undo it.
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await acknowledge(calls, last)
        assert from_rpc_error(refused.value).code == "GROUP_WAS_RESET"
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        # Whoever reads begins there anew.
        await out.publish()
        await one.until(lambda: one.events[3:5] == ids[1:])
        again = one.told[4].position
        assert again == f"{last}.1" and await acknowledge(calls, again) == again
    rows = await admin.execute("SELECT event FROM executor.audit_outbox")
    ((told,),) = await rows.fetchall()
    assert (told["kind"], told["action"], told["object"]) == ("ConsumerGroup", "reset", "billing")
    assert told["fields"] == [{"path": "position", "after": f'"{first}"'}]


async def test_only_what_was_told_can_be_acknowledged(
    out: DeliveryBench, calls: EventCalls
) -> None:
    await out.publish()
    async with consumer(calls, group="billing") as one:
        await one.until(lambda: len(one.told) == 1)
    server, xid, event = one.told[0].position.split(".")
    wrong = {
        f"{server}.{int(xid) + 10**9}.{event}": "INVALID_ARGUMENT",
        f"{server}.{xid}": "INVALID_ARGUMENT",
        "": "INVALID_ARGUMENT",
        f"{server}.{2**64}.{event}": "INVALID_ARGUMENT",
        f"{int(server, 16) ^ 1:x}.{xid}.{event}": "OUT_OF_RANGE",
    }
    for position, code in wrong.items():
        for reset in (False, True):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await acknowledge(calls, position, reset=reset)
            assert refused.value.code().name == code
    # What begins with the horizon is not told yet, though a group may begin before it.
    async with out.database.tenant(out.tenant_id) as tx:
        late = Event(out.tenant_id, None, "late", "k", {}, None, b"null")
        await accepting.accept(tx, [accepting.draft(late, [], out.keys.key)])
        horizon = (await positions.newest(out.database, out.tenant_id)).xid
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await acknowledge(calls, f"{server}.{horizon}.{'f' * 32}")
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        begin = f"{server}.{horizon}.{'0' * 32}"
        assert await acknowledge(calls, begin) == begin
        assert (await acknowledge(calls, one.told[0].position, reset=True)).endswith(".1")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await acknowledge(calls, one.told[0].position, group="absent")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"filter": "event.absent == 1"}, "INVALID_ARGUMENT"),
        ({"filter": "event.payload ==", "group": "g"}, "INVALID_ARGUMENT"),
        ({"types": [""]}, "INVALID_ARGUMENT"),
        ({"types": ["a"] * 101}, "INVALID_ARGUMENT"),
        ({"group": "No Slug"}, "INVALID_ARGUMENT"),
        ({"position": ""}, "INVALID_ARGUMENT"),
        ({"position": "x"}, "INVALID_ARGUMENT"),
        ({"position": f"1.5.{'0' * 32}"}, "OUT_OF_RANGE"),
        ({"start": 9}, "INVALID_ARGUMENT"),
    ],
)
async def test_wrong_words_are_refused(said: dict[str, Any], code: str, calls: EventCalls) -> None:
    async with consumer(calls, **said) as one:
        await one.end()
        assert one.ended is not None and one.ended.code().name == code
        assert one.told == []


async def test_a_position_that_the_server_has_not_come_to_is_refused(
    out: DeliveryBench, calls: EventCalls
) -> None:
    await out.publish()
    async with consumer(calls) as one:
        await one.until(lambda: len(one.told) == 1)
    server, xid, event = one.told[0].position.split(".")
    # As after a restore to a moment before it was told.
    for group in ({}, {"group": "billing"}):
        position = f"{server}.{int(xid) + 10**9}.{event}"
        async with consumer(calls, position=position, **group) as lost:
            await lost.end()
            assert lost.ended is not None and lost.ended.code().name == "OUT_OF_RANGE"
            assert from_rpc_error(lost.ended).code == "POSITION_AHEAD"


async def test_who_may_only_read_is_of_no_group(out: DeliveryBench, calls: EventCalls) -> None:
    await out.publish()
    async with consumer(calls, group="billing") as one:
        await one.until(lambda: len(one.told) == 1)
        calls.may.clear()
        async with consumer(calls, group="billing") as two, consumer(calls) as alone:
            await alone.until(lambda: len(alone.told) == 1)
            for each in (one, two):
                await each.until(lambda each=each: each.ended is not None)  # type: ignore[misc]
                assert each.ended is not None
                assert each.ended.code() is grpc.StatusCode.PERMISSION_DENIED
            assert two.told == []


async def test_who_has_lost_its_turn_meanwhile_is_told_nothing_more(
    out: DeliveryBench, calls: EventCalls, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consuming, "KEEP_S", 0.0)
    monkeypatch.setattr(consuming, "TURN_S", 60.0)
    ids = [await out.publish() for _ in range(2)]
    taken = asyncio.Event()

    async def slow(secrets: Any, kept: Any) -> Any:
        if kept.id == ids[1]:
            # While it is looked at, another one takes over.
            await admin.execute(
                "UPDATE executor.consumer_groups SET claim_id = gen_random_uuid(),"
                " lease_until = now() + interval '1 h'"
            )
            taken.set()
        return await retelling.opened(secrets, kept)

    monkeypatch.setattr(consuming, "opened", slow)
    async with consumer(calls, group="billing") as one:
        await asyncio.wait_for(taken.wait(), 5)
        calls.arrivals.close()
        await one.end()
        assert one.events == ids[:1]


async def test_those_who_wait_for_their_turn_do_not_ask_together(
    out: DeliveryBench, calls: EventCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    await out.publish()
    asked: list[tuple[UUID, float]] = []
    claim = Group.claim

    async def noted(group: Group, member: UUID) -> Any:
        asked.append((member, time.monotonic()))
        return await claim(group, member)

    async with consumer(calls, group="billing") as one:
        await one.until(lambda: len(one.told) == 1)
        monkeypatch.setattr(Group, "claim", noted)
        async with consumer(calls, group="billing") as two:
            await two.until(lambda: len(asked) > 8)
    moments = [moment for _, moment in asked]
    gaps = [after - before for before, after in pairwise(moments)]
    assert len({member for member, _ in asked}) == 1
    # No more than half of `TURN_S` sooner, and not all alike.
    assert min(gaps) >= 0.05 and max(gaps) - min(gaps) > 0.01


async def test_what_does_not_open_is_told_as_such(out: DeliveryBench, calls: EventCalls) -> None:
    gone = await out.publish()
    out.keys.replace_key()
    out.keys.retired = {}
    there = await out.publish()
    async with consumer(calls) as one, consumer(calls, filter="event.type != ''") as choosy:
        await one.until(lambda: len(one.told) == 2)
        assert one.events == [gone, there]
        assert [each.unreadable for each in one.told] == [True, False]
        assert not one.told[0].event.body and one.told[0].event.type == "invoice.paid"
        await choosy.until(lambda: choosy.events == [there])


async def test_another_tenants_events_and_groups_are_not_there(
    out: DeliveryBench, calls: EventCalls, tenant_ids: tuple[UUID, UUID]
) -> None:
    await out.publish()
    async with consumer(calls, group="billing") as one:
        await one.until(lambda: len(one.told) == 1)
        out.tenant_id = tenant_ids[1]
        async with consumer(calls, group="theirs") as other:
            mine = await out.publish()
            await other.until(lambda: bool(other.told))
            assert other.events == [mine]
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await acknowledge(calls, one.told[0].position)
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_who_may_no_longer_is_told_no_more(out: DeliveryBench, calls: EventCalls) -> None:
    await out.publish()
    async with consumer(calls) as one:
        await one.until(lambda: len(one.told) == 1)
        calls.barred.append(PermissionDenied("no longer"))
        await one.end()
        assert one.ended is not None
        assert one.ended.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_tenant_has_so_many_consumers_and_no_more(
    out: DeliveryBench, calls: EventCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consuming, "MOST_OF_TENANT", 2)
    await out.publish()
    async with consumer(calls, group="a") as one, consumer(calls, group="b") as two:
        await one.until(lambda: bool(one.told and two.told))
        async with consumer(calls) as third:
            await third.end()
            assert third.ended is not None
            assert from_rpc_error(third.ended).code == "CONSUMERS_EXHAUSTED"


async def test_a_tenant_has_so_many_groups_and_no_more(
    out: DeliveryBench, calls: EventCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consuming, "MOST_GROUPS", 1)
    await out.publish()
    async with consumer(calls, group="a") as one:
        await one.until(lambda: bool(one.told))
        async with consumer(calls, group="b") as two:
            await two.end()
            assert two.ended is not None
            assert from_rpc_error(two.ended).code == "GROUPS_EXHAUSTED"
    # The group that is there goes on.
    async with consumer(calls, group="a") as again:
        await again.until(lambda: bool(again.told))


async def test_consumers_that_wait_look_together(out: DeliveryBench, calls: EventCalls) -> None:
    ids = [await out.publish()]
    made = [Consumer(calls.stub.SubscribeEvents(pb.SubscribeEventsRequest(parent=PARENT, start=OLDEST))) for _ in range(20)]  # fmt: skip
    for each in made:
        await each.until(lambda each=each: each.events == ids)  # type: ignore[misc]
    asked = out.database.pools()["tenant"].requests
    await asyncio.sleep(0.4)
    # At one look in 20 ms; by themselves they would have asked twenty times as often.
    assert out.database.pools()["tenant"].requests - asked <= 25
    ids.append(await out.publish())
    for each in made:
        await each.until(lambda each=each: each.events == ids)  # type: ignore[misc]
        await each.stop()


async def test_a_page_holds_no_more_than_fits_and_one_event_at_least(
    out: DeliveryBench, calls: EventCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(positions, "LARGEST", 100)
    ids = [await out.publish(payload="x" * size) for size in (10, 60, 400, 10, 10)]
    async with consumer(calls) as one:
        await one.until(lambda: len(one.told) == 5)
        assert one.events == ids
    page = await positions.after(out.database, out.tenant_id, positions.OLDEST)
    assert [each.noted.id for each in page] == ids[: len(page)] and len(page) < 5


async def test_positions_are_found_by_their_index(
    out: DeliveryBench, admin: Admin, executor_conninfos: Any
) -> None:
    await admin.execute(
        "INSERT INTO executor.events (tenant_id, id, endpoint_id, type, delivery_key, headers, body)"
        " SELECT %s, executor.uuid7_floor(date_trunc('month', now())::date), %s, 't', 'k', '{}', ''",
        [out.tenant_id, PUBLISHED],
    )
    sql = positions.AFTER.sql
    given = {"tenant_id": out.tenant_id, "xid": "5", "after": UUID(int=0), "size": 1, "largest": 1}
    async with await psycopg.AsyncConnection.connect(
        executor_conninfos[0].reveal_text(),
        cursor_factory=psycopg.AsyncRawCursor,
        autocommit=True,
    ) as mine:
        await mine.execute("SET enable_seqscan = off")
        await mine.execute(
            "SELECT set_config('app.current_tenant_id', $1, false)", [str(out.tenant_id)]
        )
        rows = await mine.execute(f"EXPLAIN {sql}", positions.AFTER.bind(given))
        plan = "\n".join(row[0] for row in await rows.fetchall())
    # Under the policy as well: what compares positions leaks nothing.
    conditions = [line for line in plan.splitlines() if "Index Cond" in line]
    assert conditions and all("xid" in line for line in conditions), plan
    assert "Sort  (" not in plan
