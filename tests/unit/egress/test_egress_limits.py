import asyncio
import zlib

import pytest

from services.chassis.egress import (
    Egress,
    ResponseLost,
    ResponseTooLarge,
)
from tests.unit.egress.conftest import LIMIT, LIMITS, Server, StartRaw, get


async def test_an_answer_as_long_as_the_limit_is_read_and_one_byte_more_is_not(
    server: Server, egress: Egress
) -> None:
    assert len((await egress.send(get(f"{server.url}/sized?bytes={LIMIT}"))).body) == LIMIT
    with pytest.raises(ResponseTooLarge) as large:
        await egress.send(get(f"{server.url}/sized?bytes={LIMIT + 1}"))
    assert (large.value.status, large.value.fault) == (200, "too_large")


async def test_an_answer_without_end_is_cut(server: Server, egress: Egress) -> None:
    with pytest.raises(ResponseTooLarge):
        await egress.send(get(f"{server.url}/endless"))


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("gzip", b"hello " * 1000),
        ("two-members", b"hello world"),
        ("empty", b""),
        ("at-limit", b"\0" * LIMIT),
    ],
)
async def test_a_compressed_answer_is_read(
    server: Server, egress: Egress, name: str, body: bytes
) -> None:
    answer = await egress.send(get(f"{server.url}/zipped?as={name}"))
    assert answer.body == body
    assert "content-encoding" not in answer.headers
    assert "content-length" not in answer.headers


@pytest.mark.parametrize("name", ["bomb", "over-limit"])
async def test_a_compressed_answer_is_measured_by_what_it_unpacks_to(
    server: Server, egress: Egress, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = watch_unpacking(monkeypatch)
    with pytest.raises(ResponseTooLarge):
        await egress.send(get(f"{server.url}/zipped?as={name}"))
    assert sum(unpacked) <= 2 * LIMIT


@pytest.mark.parametrize("name", ["cut", "broken", "not-gzip"])
async def test_a_compressed_answer_that_does_not_unpack_is_lost(
    server: Server, egress: Egress, name: str
) -> None:
    with pytest.raises(ResponseLost) as lost:
        await egress.send(get(f"{server.url}/zipped?as={name}"))
    assert lost.value.status == 200


async def test_an_answer_in_an_encoding_nobody_asked_for_is_left_as_it_is(
    raw_server: StartRaw,
) -> None:
    async def brotli(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 3\r\n\r\nabc")

    server = await raw_server(brotli)
    async with Egress(server.allow, LIMITS) as out:
        answer = await out.send(get(f"{server.url}/"))
    assert (answer.body, answer.headers["content-encoding"]) == (b"abc", "br")


def watch_unpacking(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all pieces that any zlib decompressor gives out from now on."""
    sizes: list[int] = []
    real = zlib.decompressobj

    class Watched:
        def __init__(self, window: int) -> None:
            self._inner = real(window)

        def decompress(self, data: bytes, most: int) -> bytes:
            out = self._inner.decompress(data, most)
            sizes.append(len(out))
            return out

        def __getattr__(self, name: str) -> object:
            return getattr(self._inner, name)

    monkeypatch.setattr(zlib, "decompressobj", Watched)
    return sizes
