"""The feed: everything, in order, without losing what commits late."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import grpc
import psycopg
import pytest
from tenon.registry.v1 import config_service_pb2 as pb2

from services.chassis import errors
from services.registry import feed as feed_module
from services.registry.feed import Entry, Feed
from services.registry.store import revisions
from tests.integration.registry import documents
from tests.integration.registry.callers import Caller, Registry, refused
from tests.integration.registry.conftest import Calls
from tests.integration.registry.documents import acme

Rows = psycopg.AsyncConnection[tuple[object, ...]]
INSERT = "INSERT INTO registry.feed (tenant_id, kind, revision) VALUES (%s, 'revision', %s)"


async def take(feed: Feed, count: int, position: str = "") -> list[Entry]:
    found = []
    async with asyncio.timeout(5):
        async for entry in feed.follow(position):
            found.append(entry)
            if len(found) == count:
                break
    return found


@pytest.fixture
async def listening(registry: Registry) -> AsyncIterator[None]:
    task = asyncio.create_task(registry.feed.listen())
    yield
    task.cancel()


async def test_entries_come_in_order_and_a_position_goes_on_exactly_there(
    owner: Caller, calling: Calls
) -> None:
    await owner.apply("acme", acme())
    for number in range(4):
        await owner.apply("acme", [documents.subscription(event_types=[f"a.n{number}"])])
    executor = await calling("EXECUTOR", kind="service")
    call = executor.config.WatchFeed(pb2.WatchFeedRequest(), timeout=10)
    seen = [await call.read() for _ in range(5)]
    call.cancel()
    assert all(isinstance(answer, pb2.WatchFeedResponse) for answer in seen)
    answers = [answer for answer in seen if isinstance(answer, pb2.WatchFeedResponse)]
    assert [(a.entry.kind, a.entry.revision) for a in answers] == [
        ("revision", n) for n in range(1, 6)
    ]
    for done, answer in enumerate(answers[:-1], start=1):
        call = executor.config.WatchFeed(pb2.WatchFeedRequest(position=answer.position), timeout=10)
        rest = [await call.read() for _ in range(5 - done)]
        call.cancel()
        assert rest == answers[done:]


async def test_what_commits_late_is_not_lost(registry: Registry, rows: Rows) -> None:
    """Opened before, committed after another: the follower waits for it instead of passing."""
    early, late = uuid4(), uuid4()
    async with await psycopg.AsyncConnection.connect(registry.superuser.reveal_text()) as slow:
        await slow.execute(INSERT, [late, 1])
        await rows.execute(INSERT, [early, 1])
        waiting = asyncio.create_task(take(registry.feed, 2))
        # Several polls see the committed entry and must all leave it where it is.
        await asyncio.sleep(0.8)
        assert not waiting.done()
        hidden = asyncio.create_task(take(registry.feed, 1))
        await asyncio.sleep(0.4)
        assert not hidden.done()
        await slow.commit()
    assert [entry.tenant_id for entry in await waiting] == [late, early]
    assert [entry.tenant_id for entry in await hidden] == [late]


async def test_a_transaction_that_rolls_back_holds_nobody_up(
    registry: Registry, rows: Rows
) -> None:
    async with await psycopg.AsyncConnection.connect(registry.superuser.reveal_text()) as slow:
        await slow.execute(INSERT, [uuid4(), 1])
        await rows.execute(INSERT, [UUID(int=1), 1])
        await slow.rollback()
    assert [entry.tenant_id for entry in await take(registry.feed, 1)] == [UUID(int=1)]


async def test_many_writers_at_once_lose_nothing(registry: Registry) -> None:
    count = 200
    following = asyncio.create_task(take(registry.feed, count))

    async def write(number: int) -> None:
        async with await psycopg.AsyncConnection.connect(
            registry.superuser.reveal_text()
        ) as connection:
            for step in range(count // 8):
                await connection.execute(INSERT, [UUID(int=number), step])
                await asyncio.sleep(0.001 * (number % 3))
                await connection.commit()

    await asyncio.gather(*(write(number) for number in range(8)))
    found = await following
    told = {(entry.tenant_id, entry.revision) for entry in found}
    assert len(told) == count
    for number in range(8):
        mine = [entry.revision for entry in found if entry.tenant_id == UUID(int=number)]
        assert mine == sorted(mine)


async def test_a_position_of_another_incarnation_is_out_of_range(
    owner: Caller, calling: Calls, rows: Rows
) -> None:
    await owner.apply("acme", acme())
    executor = await calling("EXECUTOR", kind="service")
    call = executor.config.WatchFeed(pb2.WatchFeedRequest(), timeout=5)
    answer = await call.read()
    call.cancel()
    assert isinstance(answer, pb2.WatchFeedResponse)
    await rows.execute("UPDATE registry.deployment SET incarnation = gen_random_uuid()")
    with refused(errors.OutOfRange):
        await executor.config.WatchFeed(
            pb2.WatchFeedRequest(position=answer.position), timeout=5
        ).read()


@pytest.mark.parametrize(
    "rest", ["", ".1", ".a.b", ".².3", ".1.99999999999999999999", ".99999999999999999999.1"]
)
async def test_what_is_no_position_is_refused(
    calling: Calls, registry: Registry, rest: str
) -> None:
    executor = await calling("EXECUTOR", kind="service")
    async with registry.database.system() as transaction:
        incarnation = (await transaction.one(revisions.INCARNATION)).incarnation
    request = pb2.WatchFeedRequest(position=f"{incarnation}{rest}")
    with refused(errors.InvalidArgument):
        await executor.config.WatchFeed(request, timeout=5).read()


@pytest.mark.usefixtures("listening")
async def test_followers_wake_by_notice(
    registry: Registry, owner: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    await owner.apply("acme", acme())
    monkeypatch.setattr(feed_module, "POLL_S", 60.0)
    position = (await take(registry.feed, 1))[0].position
    waiting = asyncio.create_task(take(registry.feed, 1, position))
    # The follower has read once and sleeps until told.
    await asyncio.sleep(0.3)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await owner.apply("acme", [documents.subscription(event_types=["push"])])
    assert (await waiting)[0].revision == 2
    assert loop.time() - begun < 1.0


async def test_a_quiet_feed_gives_signs_of_life(
    registry: Registry, owner: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    await owner.apply("acme", acme())
    monkeypatch.setattr(feed_module, "ALIVE_S", 0.1)
    entry, sign, again = await take(registry.feed, 3)
    assert entry.tenant_id is not None
    assert sign == again == Entry(entry.position)


async def test_followers_end_when_the_service_drains(registry: Registry, calling: Calls) -> None:
    executor = await calling("EXECUTOR", kind="service")
    call = executor.config.WatchFeed(pb2.WatchFeedRequest(), timeout=10)
    reading = asyncio.ensure_future(call.read())
    await asyncio.sleep(0.3)
    registry.feed.close()
    assert await asyncio.wait_for(reading, 2) is grpc.aio.EOF
