"""What senders may do to hurt: it costs little, is kept as it came, and holds nobody else up."""

import asyncio
import gzip
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

from services.executor.ingress import server
from services.sandbox.sender import webhook_headers
from tests.integration.executor.ingress_house import SECRET, House

MEGABYTE = 2**20
CHUNK = b"10000\r\n" + b"x" * 2**16 + b"\r\n"
DEEP = 100_000
BODIES = {
    "packed a thousandfold": gzip.compress(b"[" * 32 * MEGABYTE),
    "no UTF-8": b'{"action":"opened\xff"}',
    "a name twice": b'{"action":"closed","action":"opened"}',
    "deep": b'{"action":"opened","a":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "a long number": b'{"action":"opened","n":' + b"1" * 5000 + b"}",
    "a large number": b'{"action":"opened","issue":{"number":7},"n":1e400}',
    "half a character": b'{"action":"opened","issue":{"number":7},"t":"\\ud800"}',
    "a zero": b'{"action":"opened","issue":{"number":7},"t":"\\u0000"}',
}
"""Some are JSON, if odd; two of those are taken by the subscriptions that look at what is in them."""

Wire = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def opened(house: House, *headers: str) -> Wire:
    """A connection on which the head of a delivery has been sent, as far as `headers` say."""
    wire = await asyncio.open_connection("127.0.0.1", urlsplit(house.url).port)
    head = ["POST /v1/acme/hook HTTP/1.1", "Host: here", *headers]
    wire[1].write("\r\n".join([*head, "", ""]).encode())
    return wire


async def status(wire: Wire) -> int:
    """The answer's status; 0 where the connection was closed without one."""
    reader, writer = wire
    with suppress(ConnectionError):
        line = await reader.readline()
        writer.close()
        return int(line.split()[1]) if line else 0
    return 0


async def test_twenty_megabytes_are_refused_before_they_have_come(house: House) -> None:
    announced = await opened(house, f"Content-Length: {20 * MEGABYTE}")
    assert await status(announced) == 413

    reader, writer = await opened(house, "Transfer-Encoding: chunked")
    answer = asyncio.create_task(status((reader, writer)))
    sent = 0
    while not answer.done() and sent < 20 * MEGABYTE:
        writer.write(CHUNK)
        await writer.drain()
        await asyncio.sleep(0)
        sent += 2**16
    assert await answer == 413
    assert sent < 10 * MEGABYTE
    assert await house.count("events") == 0


async def test_odd_bodies_are_kept_as_they_came_and_break_nothing(house: House) -> None:
    for name, body in BODIES.items():
        headers = webhook_headers("issues", body, SECRET, name.replace(" ", "-"))
        packed = {"Content-Encoding": "gzip"} if name.startswith("packed") else {}
        assert (await house.post("/v1/acme/hook", body, headers | packed))[0] == 202, name
    assert [kept.body for kept in await house.events()] == list(BODIES.values())
    types = dict(await house.rows("SELECT delivery_key, type FROM executor.events"))
    unread = {name for name in BODIES if types[name.replace(" ", "-")] == "issues"}
    assert unread == {"packed a thousandfold", "no UTF-8", "deep", "a long number"}
    started = await house.rows(
        "SELECT DISTINCT trigger_id, subscription FROM executor.executions ORDER BY 1, 2"
    )
    assert [subscription for _, subscription in started].count("opened") == 4


async def test_bodies_that_drip_are_given_up_and_hold_nobody_up(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "BODY_S", 3.0)
    drips = [await opened(house, "Content-Length: 1000") for _ in range(100)]
    answers = [asyncio.create_task(status(each)) for each in drips]

    async def drip() -> None:
        while True:
            for _, writer in drips:
                writer.write(b" ")
            await asyncio.sleep(0.05)

    dripping = asyncio.create_task(drip())
    for _ in range(5):
        assert (await house.send())[0] == 202
    assert not any(each.done() for each in answers)
    async with asyncio.timeout(20):
        assert set(await asyncio.gather(*answers)) == {408}
    dripping.cancel()


async def test_heads_that_never_end_are_given_up(hasty: None, house: House) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(house.url).port)
    writer.write(b"POST /v1/acme/hook HTTP/1.1\r\nHost: he")
    async with asyncio.timeout(10):
        assert await status((reader, writer)) == 0


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ingress that waits for a head a moment only."""
    monkeypatch.setattr(server, "HEAD_S", 0.2)


@pytest.mark.parametrize(
    "flood",
    [[f"X-{n}: x" for n in range(2000)], ["X: " + "x" * 100_000], ["X" * 100_000 + ": x"]],
    ids=["many", "long", "long-name"],
)
async def test_a_flood_of_headers_is_refused(house: House, flood: list[str]) -> None:
    assert await status(await opened(house, *flood)) == 400
    assert (await house.send())[0] == 202
