"""Servers that never end, say two things at once, or speak unasked: they cost little and fool nobody."""

import asyncio
import gzip
from contextlib import suppress

import pytest

from services.chassis.egress import Egress, ResponseLost, ResponseTooLarge
from tests.unit.egress.conftest import LIMITS, Raw, StartRaw, get

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
EMPTY = gzip.compress(b"")

FLOODS = {
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "early hints": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 1000),
    "empty lines": (b"", b"\r\n" * 10_000),
    "a status line": (b"HTTP/1.1 200 ", b"x" * 60_000),
    "headers": (OK, b"X-A: b\r\n" * 1000),
    "long headers": (OK, b"X-A: " + b"b" * 8000 + b"\r\n"),
    "one header": (OK + b"X-A: ", b"b" * 60_000),
    "a folded header": (OK + b"X-A: b\r\n", b" b\r\n" * 1000),
    "an extension of a chunk": (CHUNKED + b"1;", b"e" * 60_000),
    "extensions of chunks": (CHUNKED, b"1;" + b"e" * 8000 + b"\r\nx\r\n"),
    "a chunk's size": (CHUNKED, b"0" * 60_000),
    "trailers": (CHUNKED + b"0\r\n", b"X-A: b\r\n" * 1000),
    "empty members": (OK + b"Content-Encoding: gzip\r\n\r\n", EMPTY * 1000),
    "empty blocks": (OK + b"Content-Encoding: gzip\r\n\r\n" + EMPTY[:10], b"\0\0\0\xff\xff" * 9000),
}
"""How each begins, and what it then repeats without end."""


@pytest.mark.parametrize("flood", FLOODS)
async def test_a_flood_is_cut_long_before_its_time_is_up(raw_server: StartRaw, flood: str) -> None:
    begin, more = FLOODS[flood]

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(begin)
        while not writer.is_closing():
            writer.write(more)
            await writer.drain()

    server = await raw_server(_until_gone(pour))
    async with Egress(server.allow, LIMITS) as out:
        with pytest.raises((ResponseLost, ResponseTooLarge)) as lost:
            await out.send(get(f"{server.url}/"), timeout_s=20)
    assert lost.value.fault in ("lost", "too_large")


async def test_a_body_that_drips_without_end_is_late(raw_server: StartRaw) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED)
        while not writer.is_closing():
            writer.write(b"1\r\nx\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)

    server = await raw_server(_until_gone(drip))
    async with Egress(server.allow, LIMITS) as out:
        with pytest.raises(ResponseLost) as lost:
            await out.send(get(f"{server.url}/"), timeout_s=0.2)
    assert (lost.value.status, lost.value.late, lost.value.fault) == (200, True, "timeout")


async def test_a_head_that_drips_without_end_is_late(raw_server: StartRaw) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"X-A: ")
        while not writer.is_closing():
            writer.write(b"b")
            await writer.drain()
            await asyncio.sleep(0.01)

    server = await raw_server(_until_gone(drip))
    async with Egress(server.allow, LIMITS) as out:
        with pytest.raises(ResponseLost) as lost:
            await out.send(get(f"{server.url}/"), timeout_s=0.2)
    assert (lost.value.status, lost.value.late) == (None, True)


@pytest.mark.parametrize(
    "answer",
    [
        *(
            OK + b"Content-Length: " + each + b"\r\n\r\nok"
            for each in (b"-1", b"+2", b"two", b"2, 2")
        ),
        OK + b"Content-Length: 99999999999999999999999\r\n\r\nok",
        OK + b"Content-Length: 2\r\nContent-Length: 4\r\n\r\nokok",
        OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        *(CHUNKED + each + b"\r\nok\r\n0\r\n\r\n" for each in (b"zz", b"-2", b"f" * 17, b"0x2")),
        OK + b"X-A: a\0b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 2000 x\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/2 200\r\nContent-Length: 0\r\n\r\n",
        b"<html>",
    ],
)
async def test_an_answer_of_which_two_readers_could_make_two_is_lost(
    raw_server: StartRaw, answer: bytes
) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    server = await raw_server(say)
    async with Egress(server.allow, LIMITS) as out:
        with pytest.raises(ResponseLost) as lost:
            await out.send(get(f"{server.url}/"))
    assert not lost.value.late


async def test_a_few_interim_answers_come_before_the_answer(raw_server: StartRaw) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + OK + b"Content-Length: 2\r\n\r\nok")
        await writer.drain()

    server = await raw_server(say)
    async with Egress(server.allow, LIMITS) as out:
        assert (await out.send(get(f"{server.url}/"))).body == b"ok"


EVIL = OK + b"Content-Length: 4\r\n\r\nevil"


async def test_two_answers_to_one_request_are_one(raw_server: StartRaw) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
        writer.write(OK + b"Content-Length: 2\r\n\r\n" + path + EVIL)
        await reader.read()

    server = await raw_server(say)
    async with Egress(server.allow, LIMITS) as out:
        assert (await out.send(get(f"{server.url}/1"))).body == b"/1"
        assert (await out.send(get(f"{server.url}/2"))).body == b"/2"


async def test_a_kept_connection_on_which_something_comes_unasked_is_dropped(
    raw_server: StartRaw,
) -> None:
    answered, dropped = asyncio.Event(), asyncio.Event()

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
        writer.write(OK + b"Content-Length: 2\r\n\r\n" + path)
        await answered.wait()
        writer.write(EVIL)
        await reader.read()
        dropped.set()

    server = await raw_server(_until_gone(say))
    async with Egress(server.allow, LIMITS) as out:
        assert (await out.send(get(f"{server.url}/1"))).body == b"/1"
        answered.set()
        async with asyncio.timeout(5):
            await dropped.wait()
        assert (await out.send(get(f"{server.url}/2"))).body == b"/2"


async def test_an_answer_that_speaks_before_it_is_asked_is_no_answer(raw_server: StartRaw) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + b"x" * 2**24)
        await writer.drain()

    server = await raw_server(_until_gone(say))
    async with Egress(server.allow, LIMITS) as out:
        answer = await out.send(get(f"{server.url}/"), timeout_s=5)
    assert (answer.status, answer.body) == (101, b"")


@pytest.mark.parametrize("members", [500, 1500])
async def test_a_compressed_answer_has_many_members_and_not_too_many(
    raw_server: StartRaw, members: int
) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"line\n") * members)
        await writer.drain()

    server = await raw_server(say)
    async with Egress(server.allow, LIMITS) as out:
        if members == 500:
            assert (await out.send(get(f"{server.url}/"))).body == b"line\n" * members
        else:
            with pytest.raises(ResponseLost):
                await out.send(get(f"{server.url}/"))


def _until_gone(answer: Raw) -> Raw:
    """The same, content with a caller that hangs up."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await answer(reader, writer)

    return respond
