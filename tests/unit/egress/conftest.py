"""A real HTTP server on loopback, well-behaved or not, and a way out to it."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from services.chassis.egress import Egress, Limits, Request, parse_allow

LIMIT = 10_000
LIMITS = Limits(total_s=60, connect_s=2, response_bytes=LIMIT)
MIXED = ("10.0.0.1", "127.0.0.1")

Raw = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
StartRaw = Callable[[Raw], Awaitable["Server"]]


class Server:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.allow = parse_allow(f"127.0.0.1/32:{port},[::1]/128:{port}")
        self.seen: list[web.Request] = []


class Site:
    """What the server answers, by path."""

    def __init__(self) -> None:
        self.seen: list[web.Request] = []
        self.release = asyncio.Event()
        self.app = web.Application(client_max_size=2**23)
        self.app.router.add_route("*", "/echo{rest:.*}", self.echo)
        for name in ("redirect", "sized", "endless", "zipped", "cookie", "silent", "stalled"):
            self.app.router.add_get(f"/{name}", getattr(self, name))

    async def echo(self, request: web.Request) -> web.Response:
        self.seen.append(request)
        body = f"{request.method} {request.raw_path} ".encode() + await request.read()
        return web.Response(body=body, headers=[("X-Two", "a"), ("X-Two", "b")])

    async def redirect(self, request: web.Request) -> web.Response:
        self.seen.append(request)
        return web.Response(status=302, headers={"Location": "/echo"}, text="elsewhere")

    async def sized(self, request: web.Request) -> web.Response:
        return web.Response(body=b"x" * int(request.query["bytes"]))

    async def endless(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b"x" * 4096)

    async def zipped(self, request: web.Request) -> web.Response:
        body = ZIPPED[request.query["as"]]
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    async def cookie(self, request: web.Request) -> web.Response:
        self.seen.append(request)
        return web.Response(headers={"Set-Cookie": "who=tenant-a"})

    async def silent(self, request: web.Request) -> web.Response:
        self.seen.append(request)
        await self.release.wait()
        return web.Response()

    async def stalled(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(status=202)
        await answer.prepare(request)
        await answer.write(b"begun")
        await self.release.wait()
        return answer


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    site = Site()
    runner = web.AppRunner(site.app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    started = Server(runner.addresses[0][1])
    started.seen = site.seen
    yield started
    site.release.set()
    await runner.cleanup()


@pytest.fixture
async def egress(server: Server) -> AsyncIterator[Egress]:
    async with Egress(server.allow, LIMITS) as out:
        yield out


@pytest.fixture
async def raw_server() -> AsyncIterator[StartRaw]:
    """Starts a TCP server that answers as told, byte by byte."""
    started: list[asyncio.Server] = []

    async def start(answer: Raw) -> Server:
        async def answer_and_close(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            try:
                await answer(reader, writer)
            finally:
                writer.close()

        one = await asyncio.start_server(answer_and_close, "127.0.0.1", 0)
        started.append(one)
        return Server(one.sockets[0].getsockname()[1])

    yield start
    for one in started:
        one.close()
        await one.wait_closed()


ZIPPED = {
    "gzip": gzip.compress(b"hello " * 1000),
    "two-members": gzip.compress(b"hello ") + gzip.compress(b"world"),
    "empty": b"",
    "bomb": gzip.compress(b"\0" * 50_000_000),
    "at-limit": gzip.compress(b"\0" * LIMIT),
    "over-limit": gzip.compress(b"\0" * (LIMIT + 1)),
    "cut": gzip.compress(b"hello " * 1000)[:-9],
    "broken": b"\x1f\x8b\x08\0nonsense",
    "not-gzip": b"plain",
}


def get(url: str) -> Request:
    return Request("GET", url)
