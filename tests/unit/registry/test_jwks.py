"""An issuer's keys: which count, how long, and how often it is asked for them."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from services.chassis.egress import Egress, parse_allow
from services.chassis.errors import Unavailable
from services.registry.access.jwks import (
    AGAIN_S,
    FRESH_S,
    RETRY_S,
    STALE_S,
    Keys,
    fetching,
    read_keys,
)
from tests.tokens import jwk


class Published:
    """An issuer that publishes, is down, or waits, and counts how often it is asked."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.now = 1000.0
        self.keys = list(keys)
        self.down = False
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.found = Keys("https://issuer.example", self._fetch, lambda: self.now)

    async def _fetch(self) -> bytes:
        self.asked += 1
        await self.gate.wait()
        if self.down:
            raise Unavailable("down")
        return json.dumps({"keys": self.keys}).encode()


ONE = jwk(ed25519.Ed25519PrivateKey.generate(), "one")
TWO = jwk(ec.generate_private_key(ec.SECP256R1()), "two")


async def test_keys_are_asked_for_once_and_again_after_five_minutes() -> None:
    issuer = Published(ONE)
    for _ in range(3):
        assert await issuer.found.find("one") is not None
    assert issuer.asked == 1
    issuer.now += FRESH_S
    assert await issuer.found.find("one") is not None
    await asyncio.sleep(0)
    assert issuer.asked == 2


async def test_a_hundred_at_once_ask_once() -> None:
    issuer = Published(ONE)
    issuer.gate.clear()
    asking = [asyncio.ensure_future(issuer.found.find("one")) for _ in range(100)]
    await asyncio.sleep(0)
    issuer.gate.set()
    assert all(await asyncio.gather(*asking))
    assert issuer.asked == 1


async def test_a_key_that_is_not_there_is_asked_for_at_most_every_thirty_seconds() -> None:
    issuer = Published(ONE)
    await issuer.found.find("one")
    for _ in range(10):
        assert await issuer.found.find("two") is None
    assert issuer.asked == 1
    issuer.now += AGAIN_S
    issuer.keys.append(TWO)
    assert await issuer.found.find("two") is not None
    assert issuer.asked == 2


async def test_an_issuer_that_is_down_keeps_its_keys_for_an_hour() -> None:
    issuer = Published(ONE)
    await issuer.found.find("one")
    issuer.down = True
    issuer.now += STALE_S - 1
    assert await issuer.found.find("one") is not None
    await asyncio.sleep(0)
    issuer.now += 1
    with pytest.raises(Unavailable):
        await issuer.found.find("one")
    issuer.down = False
    issuer.now += RETRY_S
    assert await issuer.found.find("one") is not None


async def test_a_key_we_could_not_ask_for_is_not_unknown() -> None:
    issuer = Published(ONE)
    issuer.down = True
    with pytest.raises(Unavailable):
        await issuer.found.find("one")


async def test_without_an_id_only_the_only_key_is_meant() -> None:
    assert await Published(ONE).found.find("") is not None
    assert await Published(ONE, TWO).found.find("") is None


def test_only_keys_for_the_algorithms_we_take_are_read() -> None:
    weak = jwk(rsa.generate_private_key(65537, 1024), "weak")
    strong = jwk(rsa.generate_private_key(65537, 2048), "strong")
    told = [
        ONE,
        TWO,
        strong,
        weak,
        {**ONE, "kid": "for encryption", "use": "enc"},
        {**strong, "kid": "other algorithm", "alg": "RS512"},
        {**strong, "kid": "hmac", "alg": "HS256"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "symmetric", "alg": "HS256"},
        jwk(ec.generate_private_key(ec.SECP384R1()), "other curve"),
        {"kty": "OKP", "crv": "Ed25519", "x": "AA", "kid": "broken"},
        "no key",
    ]
    assert sorted(read_keys(json.dumps({"keys": told}).encode())) == ["one", "strong", "two"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"keys": {}}', b"\xff", b"<html>"])
def test_what_is_no_set_of_keys_is_none(body: bytes) -> None:
    with pytest.raises(ValueError, match="not"):
        read_keys(body)


@pytest.fixture
async def site() -> AsyncIterator["Site"]:
    """A web server that publishes keys, or answers as it is told."""
    made = Site()
    app = web.Application()
    app.router.add_get("/keys", made.answer)
    async with TestServer(app, host="127.0.0.1") as server:
        made.url = str(server.make_url("/keys"))
        made.port = server.port or 0
        yield made


class Site:
    url = ""
    port = 0
    status = 200

    async def answer(self, _: web.Request) -> web.Response:
        return web.Response(status=self.status, body=json.dumps({"keys": [ONE]}).encode())


async def test_keys_are_read_from_the_web_where_that_is_allowed(site: Site) -> None:
    async with Egress(parse_allow(f"127.0.0.1/32:{site.port}")) as egress:
        assert await Keys("it", fetching(site.url, egress)).find("one") is not None
        site.status = 500
        with pytest.raises(Unavailable):
            await Keys("it", fetching(site.url, egress)).find("one")
    async with Egress(()) as egress:
        with pytest.raises(Unavailable):
            await Keys("it", fetching(site.url, egress)).find("one")


async def test_keys_are_read_from_a_file_again_when_they_are_looked_for_again(
    tmp_path: Path,
) -> None:
    path, now = tmp_path / "keys.json", [0.0]
    path.write_text(json.dumps({"keys": [ONE]}))
    async with Egress(()) as egress:
        keys = Keys("it", fetching(str(path), egress), lambda: now[0])
        assert await keys.find("one") is not None
        path.write_text(json.dumps({"keys": [TWO]}))
        now[0] += AGAIN_S
        assert await keys.find("two") is not None
