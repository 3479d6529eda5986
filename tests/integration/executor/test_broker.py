"""Events reach a broker: kept by its stream once, whatever breaks on the way."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from nats.js import JetStreamContext
from standardwebhooks import Webhook

from services.chassis.database import Database
from services.chassis.egress import Egress, parse_allow
from services.chassis.failpoints import Failpoint
from services.chassis.secret import Secret
from services.executor.deliveries.broker_links import Link, opened
from services.executor.deliveries.broker_pool import Links, Terms
from services.executor.deliveries.broker_streams import GivenStream
from services.executor.deliveries.sending import AFTER_SEND
from services.executor.registry.credentials import Resolved
from services.providers.brokers import parse
from tests.certificates import HERE, Authority
from tests.integration.executor.delivery_bench import (
    SECRET,
    DeliveryBench,
    delivery_bench,
    subscription,
)
from tests.nats_servers import MOST_BYTES, NatsServer, free_ports, nats_server, needs_nats, streams

pytestmark = needs_nats

USERS = """
authorization {
  users: [
    {user: "anyone", password: "anyone"}
    {user: "acme", password: "right"}
    {user: "reader", password: "reads", permissions: {publish: {deny: ["t.>"]}}}
  ]
}
no_auth_user: "anyone"
"""
PASSWORD = {"username": Secret("acme"), "password": Secret("right")}
INFO = {"server_id": "x", "version": "2.10.0", "max_payload": 1_048_576, "headers": True}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A server that all tests share, each with a stream of its own."""
    with nats_server(tmp_path_factory.mktemp("nats"), USERS) as running:
        yield running


@pytest.fixture
async def js(server: NatsServer) -> AsyncIterator[JetStreamContext]:
    async with streams(server.url) as context:
        yield context


@pytest.fixture
async def stream(js: JetStreamContext) -> AsyncIterator[str]:
    """A stream of everything below `t.`."""
    name = f"S{uuid4().hex[:8]}"
    await js.add_stream(name=name, subjects=["t.>"])
    yield name
    await js.delete_stream(name)


@pytest.fixture
async def out(
    server: NatsServer, executor_database: Database, tenant_ids: tuple[UUID, UUID]
) -> AsyncIterator[DeliveryBench]:
    """An endpoint at the shared server."""
    async with benched(executor_database, tenant_ids[0], server.url) as bench:
        yield bench


@asynccontextmanager
async def benched(
    database: Database, tenant_id: UUID, url: str, *more: int, idle_s: float = 60.0
) -> AsyncIterator[DeliveryBench]:
    ports = [int(each.rpartition(":")[2]) for each in url.split(",")]
    async with delivery_bench(database, tenant_id, *ports, *more, idle_s=idle_s) as bench:
        await bench.want(url=url, subject="t.${event.type}")
        yield bench


def all_are(state: str, count: int = 1) -> Callable[[list[Any]], bool]:
    return lambda found: len(found) == count and all(each.state == state for each in found)


def has_failed_by(reason: str) -> Callable[[list[Any]], bool]:
    return lambda found: bool(found) and found[0].failure_reason == reason


async def kept_by(js: JetStreamContext, stream: str) -> list[Any]:
    """All messages of a stream."""
    state = (await js.stream_info(stream)).state
    return [await js.get_msg(stream, seq) for seq in range(1, state.last_seq + 1)]


async def test_an_event_is_kept_once_with_what_its_reader_verifies_it_by(
    out: DeliveryBench, js: JetStreamContext, stream: str
) -> None:
    await out.want(headers={"X-Team": "pay"}, subject="t.${event.payload.region}.${event.type}")
    await out.publish(payload={"total": 7, "region": "eu-1"})
    async with out.working():
        (delivery,) = await out.until(all_are("success"))
    (message,) = await kept_by(js, stream)
    assert message.subject == "t.eu-1.invoice.paid"
    told = Webhook(SECRET.reveal_text()).verify(message.data, dict(message.headers))
    assert (told["type"], told["data"]) == ("invoice.paid", {"total": 7, "region": "eu-1"})
    assert message.headers["Nats-Msg-Id"] == message.headers["webhook-id"] == f"evt_{delivery.id}"
    assert message.headers["content-type"] == "application/json"
    assert message.headers["X-Team"] == "pay"
    (attempt,) = await out.attempts(delivery.id)
    assert json.loads(attempt.response_head) == {"stream": stream, "seq": 1}


async def test_what_is_sent_twice_its_stream_keeps_once(
    out: DeliveryBench, js: JetStreamContext, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await out.publish()
    faults = [RuntimeError("the worker broke")]

    def hit(self: Failpoint) -> None:
        if self is AFTER_SEND and faults:
            raise faults.pop()

    monkeypatch.setattr(Failpoint, "hit", hit)
    async with out.working():
        (delivery,) = await out.until(all_are("success"))
    assert not faults and len(await kept_by(js, stream)) == 1
    (attempt,) = await out.attempts(delivery.id)
    assert json.loads(attempt.response_head)["duplicate"] is True


async def test_without_a_stream_it_is_tried_again_until_there_is_one(
    out: DeliveryBench, js: JetStreamContext
) -> None:
    await out.want(subject="later.${event.id}", delivery={"retries": ["0.1s"] * 50})
    event_id = await out.publish()
    async with out.working():
        await out.until(has_failed_by("NO_STREAM"))
        await js.add_stream(name="LATER", subjects=["later.*"])
        await out.until(all_are("success"))
    (message,) = await kept_by(js, "LATER")
    assert message.subject == f"later.{event_id}"


async def test_a_server_that_is_down_is_tried_until_it_is_up_by_a_new_connection(
    executor_database: Database, tenant_ids: tuple[UUID, UUID], tmp_path: Path
) -> None:
    with nats_server(tmp_path) as server:
        async with (
            benched(executor_database, tenant_ids[0], server.url) as out,
            streams(server.url) as js,
        ):
            await out.want(delivery={"retries": ["0.1s"] * 100})
            await js.add_stream(name="T", subjects=["t.>"])
            async with out.working():
                await out.publish()
                await out.until(all_are("success"))
                server.stop()
                await out.publish()
                await out.until(lambda found: found[-1].failure_reason == "CONNECT")
                server.start()
                (*_, second) = await out.until(all_are("success", 2))
                # What had broken meanwhile was not tried.
                reasons = {each.failure_reason for each in await out.attempts(second.id)}
                assert reasons == {"CONNECT", ""}
        async with streams(server.url) as js:
            assert len(await kept_by(js, "T")) == 2


async def test_nothing_is_published_to_addresses_inside_and_the_log_names_none(
    out: DeliveryBench,
) -> None:
    async with out.working():
        for url in ("tls://10.1.2.3:4222", "nats://127.0.0.1:1", "nats://localhost:1,127.0.0.1:2"):
            await out.want(url=url)
            await out.publish()
            (*_, delivery) = await out.until(lambda found: found[-1].ended_at is not None)
            assert (delivery.state, delivery.failure_reason) == ("failed", "REFUSED")
            told = repr(await out.attempts(delivery.id))
            assert not any(each in told for each in ("10.1.2.3", "127.0.0.1", "localhost"))


@pytest.mark.parametrize(
    ("auth", "kind", "wrong", "right"),
    [
        (
            "BASIC",
            "basic",
            {"username": Secret("acme"), "password": Secret("canary")},
            {"username": Secret("acme"), "password": Secret("right")},
        ),
        ("BEARER", "bearer", {"token": Secret("canary")}, {"token": Secret("right")}),
    ],
)
async def test_who_is_refused_is_let_in_with_the_next_version_of_the_credential(
    executor_database: Database,
    tenant_ids: tuple[UUID, UUID],
    tmp_path: Path,
    auth: str,
    kind: str,
    wrong: dict[str, Secret],
    right: dict[str, Secret],
) -> None:
    more = 'authorization { token: "right" }' if auth == "BEARER" else USERS
    known = {"token": "right"} if auth == "BEARER" else {"user": "acme", "password": "right"}
    with nats_server(tmp_path, more) as server:
        async with (
            benched(executor_database, tenant_ids[0], server.url) as out,
            streams(server.url, **known) as js,
        ):
            await js.add_stream(name="T", subjects=["t.>"])
            credential_id = uuid4()
            out.keys.shown = Resolved(credential_id, kind, 1, wrong)
            await out.want(auth=auth, credential="shown", delivery={"retries": ["0.1s"] * 50})
            await out.publish()
            async with out.working():
                (found,) = await out.until(has_failed_by("UNAUTHORIZED"))
                assert "canary" not in repr(await out.attempts(found.id))
                out.keys.shown = Resolved(credential_id, kind, 2, right)
                await out.until(all_are("success"))
            assert len(await kept_by(js, "T")) == 1


async def test_who_may_not_publish_there_is_unauthorized(out: DeliveryBench, stream: str) -> None:
    reader = {"username": Secret("reader"), "password": Secret("reads")}
    out.keys.shown = Resolved(uuid4(), "basic", 1, reader)
    await out.want(auth="BASIC", credential="shown", delivery={"timeout": "0.5s"})
    await out.publish()
    async with out.working():
        await out.until(has_failed_by("UNAUTHORIZED"))


async def test_what_is_too_large_fails_for_good_and_the_others_go_on(
    out: DeliveryBench, server: NatsServer, js: JetStreamContext, stream: str
) -> None:
    async with out.working():
        await out.publish(payload={"n": 0})
        await out.until(all_are("success"))
        (before,) = server.connections()
        # The first alone is within the limit: it is the headers that take it over.
        for size in (MOST_BYTES - 150, MOST_BYTES + 1):
            await out.publish(payload={"text": "x" * size})
        await out.publish(payload={"n": 1})
        found = await out.until(lambda f: len(f) == 4 and all(d.ended_at is not None for d in f))
        (after,) = server.connections()
    assert [each.state for each in found] == ["success", "failed", "failed", "success"]
    assert [each.failure_reason for each in found[1:3]] == ["MESSAGE_TOO_LARGE"] * 2
    assert before["cid"] == after["cid"] and len(await kept_by(js, stream)) == 2


async def test_what_its_stream_has_no_room_for_is_tried_again_and_too_large_for_it_is_not(
    out: DeliveryBench, js: JetStreamContext
) -> None:
    await js.add_stream(
        name="SMALL", subjects=["small"], max_msgs=1, discard="new", max_msg_size=800
    )
    await out.want(subject="small", delivery={"retries": ["0.1s"] * 50})
    async with out.working():
        await out.publish(payload={"text": "x" * 1000})
        await out.until(lambda found: found[0].failure_reason == "MESSAGE_TOO_LARGE")
        await out.publish()
        await out.until(lambda found: found[-1].state == "success")
        await out.publish()
        (*_, full) = await out.until(lambda found: found[-1].failure_reason == "BROKER_10077")
        (attempt, *_) = await out.attempts(full.id)
        assert "maximum messages exceeded" in attempt.response_head
        await js.purge_stream("SMALL")
        await out.until(lambda found: found[-1].state == "success")
    await js.delete_stream("SMALL")


async def test_a_payload_leads_to_no_other_subject(
    out: DeliveryBench, js: JetStreamContext, stream: str
) -> None:
    await out.want(subject="t.${event.payload.region}")
    for region in ("a.b", "*", ">", "a b", "", "é", None, "x" * 2000):
        await out.publish(payload={"region": region})
    async with out.working():
        found = await out.until(all_are("failed", 8))
    assert {each.failure_reason for each in found} == {"BAD_SUBJECT"}
    assert await kept_by(js, stream) == []


async def test_a_subject_is_of_the_event_whatever_a_transform_makes_of_it(
    out: DeliveryBench, js: JetStreamContext, stream: str
) -> None:
    short = subscription("short", transform={"sum": "${event.payload.total}"})
    await out.want(short, subject="t.${event.payload.region}", secret=None)
    await out.publish(payload={"total": 7, "region": "eu"})
    async with out.working():
        await out.until(all_are("success"))
    (message,) = await kept_by(js, stream)
    assert message.subject == "t.eu" and json.loads(message.data)["data"] == {"sum": 7}
    # Without a secret it is not signed, yet known by its id.
    assert "webhook-signature" not in message.headers and "webhook-timestamp" in message.headers


async def test_an_endpoint_has_one_connection_and_shares_it_with_no_other_tenant(
    executor_database: Database,
    tenant_ids: tuple[UUID, UUID],
    server: NatsServer,
    js: JetStreamContext,
    stream: str,
) -> None:
    async with (
        benched(executor_database, tenant_ids[0], server.url) as one,
        benched(executor_database, tenant_ids[1], server.url) as other,
    ):
        # One process, with the keys of one house, sends for both.
        other.publishing = one.publishing
        before = server.begun()
        for bench in (one, other):
            for number in range(20):
                await bench.publish(payload={"n": number})
        async with one.working():
            await one.until(all_are("success", 20))
            await other.until(all_are("success", 20))
            assert len(server.connections()) == server.begun() - before == 2
    assert len(await kept_by(js, stream)) == 40
    await closed(server)


async def test_a_connection_is_closed_when_it_is_idle_or_its_credential_has_changed(
    executor_database: Database, tenant_ids: tuple[UUID, UUID], server: NatsServer, stream: str
) -> None:
    async with benched(executor_database, tenant_ids[0], server.url, idle_s=0.3) as out:
        credential_id = uuid4()
        out.keys.shown = Resolved(credential_id, "basic", 1, PASSWORD)
        await out.want(auth="BASIC", credential="shown")
        async with out.working():
            await out.publish()
            await out.until(all_are("success"))
            (first,) = server.connections()
            out.keys.shown = Resolved(credential_id, "basic", 2, PASSWORD)
            await out.publish()
            await out.until(all_are("success", 2))
            cids = [each["cid"] for each in server.connections()]
            assert first["cid"] not in cids
            await closed(server)
            await out.publish()
            await out.until(all_are("success", 3))


async def closed(server: NatsServer) -> None:
    """Wait until nobody of ours is connected."""
    async with asyncio.timeout(10):
        while server.connections():
            await asyncio.sleep(0.05)


async def test_of_a_cluster_one_host_that_answers_is_enough(
    executor_database: Database,
    tenant_ids: tuple[UUID, UUID],
    server: NatsServer,
    js: JetStreamContext,
    stream: str,
) -> None:
    down = free_ports(9)
    hosts = ",".join(f"127.0.0.1:{port}" for port in (*down, server.port))
    async with benched(executor_database, tenant_ids[0], f"nats://{hosts},127.0.0.1:1") as out:
        await out.publish()
        async with out.working():
            (delivery,) = await out.until(all_are("success"))
        assert delivery.attempts == 1 and len(await kept_by(js, stream)) == 1


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def speaking(talk: Talk) -> AsyncIterator[int]:
    """A server that says what it likes; answers with its port."""

    async def until_gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except OSError:
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(until_gone, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


async def test_servers_that_a_broker_tells_of_are_never_dialled(
    executor_database: Database, tenant_ids: tuple[UUID, UUID]
) -> None:
    trapped: list[str] = []
    begun: list[str] = []

    async def trap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        trapped.append("here")

    async with speaking(trap) as trap_port:
        others = [f"127.0.0.1:{trap_port}", f"localhost:{trap_port}"]

        async def broker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            begun.append("here")
            told = json.dumps(INFO | {"connect_urls": others}).encode()
            writer.write(b"INFO %s\r\n" % told)
            while line := await reader.readline():
                if line.startswith(b"PING"):
                    # Once more while it is connected, and then that it goes.
                    again = told[:-1] + b', "ldm": true}'
                    writer.write(b"PONG\r\nINFO %s\r\n" % again)
                if line.startswith(b"HPUB"):
                    return

        async with (
            speaking(broker) as port,
            # Egress would let it go to the others, too.
            benched(executor_database, tenant_ids[0], f"nats://127.0.0.1:{port}", trap_port) as out,
        ):
            await out.publish()
            async with out.working():
                (delivery,) = await out.until(all_are("dead"))
            tries = await out.attempts(delivery.id)
    assert trapped == [] and len(begun) == 4
    # Each is known to be lost at once, not by the two seconds that it may take.
    assert [(each.failure_reason, each.duration_ms < 1500) for each in tries] == [
        ("LOST", True)
    ] * 4


@pytest.mark.parametrize("more", [{}, {"tls_available": True}], ids=["plain", "if you like"])
async def test_by_tls_nothing_is_said_to_a_server_that_does_not_encrypt(
    executor_database: Database, tenant_ids: tuple[UUID, UUID], more: dict[str, bool]
) -> None:
    heard = bytearray()

    async def broker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO %s\r\n" % json.dumps(INFO | more).encode())
        heard.extend(await reader.read(1000))

    async with (
        speaking(broker) as port,
        benched(executor_database, tenant_ids[0], f"tls://127.0.0.1:{port}") as out,
    ):
        out.keys.shown = Resolved(uuid4(), "basic", 1, PASSWORD)
        await out.want(auth="BASIC", credential="shown")
        await out.publish()
        async with out.working():
            (delivery,) = await out.until(all_are("dead"))
    assert delivery.failure_reason == "TLS" and not heard


@pytest.mark.parametrize(("names", "state", "reason"), [(HERE, "success", ""), ((), "dead", "TLS")])
async def test_by_tls_the_server_must_prove_to_be_the_host(
    executor_database: Database,
    tenant_ids: tuple[UUID, UUID],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: Any,
    state: str,
    reason: str,
) -> None:
    authority = Authority(tmp_path / "authority")
    certificate, key = authority.issue("nats", names)
    monkeypatch.setenv(
        ssl.get_default_verify_paths().openssl_cafile_env, str(authority.certificate)
    )
    more = f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}'
    with nats_server(tmp_path, more) as server:
        trusting = ssl.create_default_context(cafile=str(authority.certificate))
        trusting.check_hostname = False
        url = f"tls://127.0.0.1:{server.port}"
        async with (
            benched(executor_database, tenant_ids[0], url) as out,
            streams(server.url, tls=trusting) as js,
        ):
            await js.add_stream(name="T", subjects=["t.>"])
            await out.publish()
            async with out.working():
                (delivery,) = await out.until(lambda found: found[0].ended_at is not None)
            assert (delivery.state, delivery.failure_reason) == (state, reason)
            assert len(await kept_by(js, "T")) == (state == "success")


async def test_what_nobody_reads_of_an_encrypted_broker_is_not_gathered(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path / "authority")
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(*authority.issue("flood", HERE))
    stalled = asyncio.Event()

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while True:
                writer.write(b"x" * 2**16)
                try:
                    await asyncio.wait_for(writer.drain(), 1.0)
                except TimeoutError:
                    stalled.set()
                    return

    async with await asyncio.start_server(
        flood, "127.0.0.1", 0, ssl=serving, ssl_shutdown_timeout=0.1
    ) as server:
        port = server.sockets[0].getsockname()[1]
        dialled = await asyncio.open_connection("127.0.0.1", port)
        stream = GivenStream(dialled, "127.0.0.1", encrypted=True)
        trusting = ssl.create_default_context(cafile=str(authority.certificate))
        await stream.connect_tls("", trusting, 0, 5)
        async with asyncio.timeout(30):
            await stalled.wait()
        assert len(stream._reader._buffer) < 2**20  # type: ignore[attr-defined]
        stream.abort()


async def test_a_broker_that_talks_nonsense_costs_a_try_and_little_else(
    executor_database: Database, tenant_ids: tuple[UUID, UUID]
) -> None:
    greeting, much = b"INFO %s\r\nPONG\r\n" % json.dumps(INFO).encode(), b"x" * 5_000_000
    sayings = [
        (b"INFO " + much, "CONNECT"),
        (b"INFO []\r\n", "CONNECT"),
        (b"INFO {\r\n", "CONNECT"),
        (b"\r\n", "CONNECT"),
        (greeting + b"MSG a 1 9999999\r\n" + much, "LOST"),
        (greeting + much, "LOST"),
        (greeting + b"-ERR \r\n", "TIMEOUT"),
        (b"", "TIMEOUT"),
    ]
    left = [said for said, _ in sayings]

    async def broker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(left.pop(0))
        await writer.drain()
        await reader.read()

    async with (
        speaking(broker) as port,
        benched(executor_database, tenant_ids[0], f"nats://127.0.0.1:{port}") as out,
    ):
        await out.want(delivery={"retries": [], "timeout": "0.5s"})
        async with out.working():
            for number, (_, reason) in enumerate(sayings):
                await out.publish(payload={"n": number})
                found = await out.until(lambda f: f[-1].state == "dead")
                assert (number, found[-1].failure_reason) == (number, reason)


async def test_of_connections_that_nobody_uses_only_so_many_are_kept(server: NatsServer) -> None:
    """Those in use are never closed for that; the one used longest ago goes first."""
    broker, terms = parse(server.url), Terms(server.url, None, None)
    async with Egress(parse_allow(f"127.0.0.1/32:{server.port}")) as egress, Links(most=2) as links:

        def lent(number: int) -> AbstractAsyncContextManager[Link]:
            whose = (UUID(int=0), UUID(int=number))
            return links.lent(whose, terms, partial(opened, egress, broker, {}, None), 5)

        async with lent(0) as held, lent(1), lent(2):
            assert len(server.connections()) == 3
        async with lent(0) as again:
            assert again is held
        async with lent(3) as newest, asyncio.timeout(5):
            while len(server.connections()) != 2:
                await asyncio.sleep(0.02)
            assert not held.broken and not newest.broken
    await closed(server)
