"""An end user's browser comes by the ingress: once, in the same browser, and always gets words."""

from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from http.cookies import SimpleCookie
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import aiohttp
import psycopg
import pytest
from tenon.registry.v1 import connection_service_pb2 as pb2
from tenon.registry.v1 import connection_service_pb2_grpc as pb2_grpc
from yarl import URL

from services.chassis.channel import open_channel
from services.chassis.database import Database
from services.chassis.errors import Unavailable
from services.chassis.evaluator import Evaluator
from services.executor.ingress import server
from services.executor.ingress.connecting import CALLBACK, COOKIE, HEADERS
from services.executor.ingress.inbound import Inbound
from services.executor.ingress.streams import Counts, Streams
from services.executor.registry.client import Registry
from services.executor.registry.connecting import RegistryConnecting
from services.executor.registry.uses import Uses
from services.providers.catalog import Catalog
from services.sandbox.server import Box, sandbox
from tests.integration.executor.running_registry import RunningRegistry, document

PUBLIC: Final = "https://tenon.example.com"
RETURN: Final = "https://app.example.com/connected"
REASON: Final = ("x-tenon-reason", "to%20connect")
Admin = psycopg.AsyncConnection[Any]


@dataclass
class Answer:
    """What a browser got."""

    status: int
    headers: Mapping[str, str]
    text: str
    cookies: dict[str, str]

    @property
    def location(self) -> URL:
        return URL(self.headers["Location"], encoded=True)


@dataclass
class Door:
    """An ingress, the registry behind it, and a provider whose accounts can be connected."""

    url: str
    box: Box
    service: RunningRegistry
    session: aiohttp.ClientSession
    admin: Admin

    async def link(self, return_url: str = "") -> str:
        """The path and query of a new link."""
        request = pb2.CreateConnectLinkRequest(
            integration="tenants/acme/integrations/pay", return_url=return_url
        )
        async with open_channel(self.service.target, key=self.service.owner_key) as channel:
            stub: pb2_grpc.ConnectionServiceAsyncStub = pb2_grpc.ConnectionServiceStub(channel)
            made = await stub.CreateConnectLink(request, timeout=5, metadata=(REASON,))
        assert made.url.startswith(f"{PUBLIC}/connect/")
        return made.url.removeprefix(PUBLIC)

    async def get(self, path: str, cookies: Mapping[str, str] | None = None) -> Answer:
        """What the ingress answers a browser."""
        return await self._get(self.url + path, cookies)

    async def consent(self, opened: Answer, **changed: str) -> str:
        """What the provider sends the browser to, once the account's owner has said yes."""
        answer = await self._get(str(opened.location.update_query(changed)), None)
        assert str(answer.location).startswith(PUBLIC + CALLBACK)
        return str(answer.location).removeprefix(PUBLIC)

    async def connections(self) -> list[Any]:
        query = "SELECT name, external_account_id FROM registry.connections"
        return await (await self.admin.execute(query)).fetchall()

    async def _get(self, url: str, cookies: Mapping[str, str] | None) -> Answer:
        sent = "; ".join(f"{name}={value}" for name, value in (cookies or {}).items())
        where = URL(url, encoded=True)
        headers = {"Cookie": sent} if sent else {}
        async with self.session.get(where, headers=headers, allow_redirects=False) as answer:
            given = SimpleCookie("; ".join(answer.headers.getall("Set-Cookie", [])))
            kept = {name: morsel.value for name, morsel in given.items()}
            return Answer(answer.status, answer.headers, await answer.text(), kept)


@pytest.fixture
async def box() -> AsyncIterator[Box]:
    async with sandbox("unused") as box:
        box.identity.change(redirect_uris=[PUBLIC + CALLBACK])
        yield box


@pytest.fixture
async def registry_service(registry_database: Database, box: Box) -> AsyncIterator[RunningRegistry]:
    service = RunningRegistry(
        registry_database,
        egress_allow=f"127.0.0.1/32:{box.url.rpartition(':')[2]}",
        public_url=PUBLIC,
        return_urls="https://app.example.com/*",
    )
    await service.prepare()
    await service.start()
    yield service
    await service.stop()


@pytest.fixture
async def door(
    registry_service: RunningRegistry,
    registry: Registry,
    executor_database: Database,
    admin: Admin,
    box: Box,
) -> AsyncIterator[Door]:
    await registry_service.apply("acme", document("Tenant", "acme", display_name="Acme"))
    await registry_service.apply("acme", *wanted(box))
    evaluator = Evaluator()
    inbound = Inbound(executor_database, registry, Catalog.load(), evaluator, Uses())
    async with (
        evaluator,
        open_channel(registry_service.target, key=registry_service.service_key) as channel,
        server.serving(
            inbound,
            Streams(inbound, executor_database, Counts()),
            RegistryConnecting(channel),
            "127.0.0.1",
            0,
        ) as port,
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
    ):
        yield Door(f"http://127.0.0.1:{port}", box, registry_service, session, admin)


def wanted(box: Box) -> list[dict[str, object]]:
    secrets = {
        "client_id": box.identity.client_id.encode(),
        "client_secret": box.identity.client_secret.reveal(),
    }
    config = {
        "authorization_url": f"{box.url}/oauth/authorize",
        "token_url": f"{box.url}/oauth/token",
        "issuer": box.url,
    }
    values = {part: {"plain": b64encode(value).decode()} for part, value in secrets.items()}
    app = {"type": "oauth2_client", "provider": "http", "config": config, "values": values}
    pay = {"provider": "http", "app": "app", "base_url": box.url, "environment": "sandbox"}
    return [document("Credential", "app", **app), document("Integration", "pay", **pay)]


async def test_a_link_is_opened_consented_to_and_leads_back_connected(door: Door) -> None:
    opened = await door.get(await door.link(return_url=RETURN))
    assert opened.status == 302 and str(opened.location).startswith(f"{door.box.url}/oauth/")
    back = await door.consent(opened, login_hint="acct_ada")
    ended = await door.get(back, opened.cookies)
    assert ended.status == 302 and str(ended.location.with_query(None)) == RETURN
    told = parse_qs(urlsplit(str(ended.location)).query)
    ((name, account),) = await door.connections()
    assert told == {"status": ["connected"], "connection": [name]}
    assert account == "acct_ada"


async def test_without_an_address_to_go_to_a_page_says_it(door: Door) -> None:
    opened = await door.get(await door.link())
    ended = await door.get(await door.consent(opened), opened.cookies)
    assert ended.status == 200 and "The account is connected" in ended.text
    assert ended.headers["Content-Type"].startswith("text/html")


async def test_another_browser_cannot_end_it_and_the_first_one_still_can(door: Door) -> None:
    opened = await door.get(await door.link())
    back = await door.consent(opened)
    other = await door.get(await door.link())
    name, value = next(iter(opened.cookies.items()))
    for cookies in ({}, other.cookies, {name: "x" * len(value)}):
        refused = await door.get(back, cookies)
        assert refused.status == 404 and "Ask for a new one" in refused.text
    assert await door.connections() == []
    assert (await door.get(back, opened.cookies)).status == 200


async def test_two_tabs_do_not_put_each_other_out(door: Door) -> None:
    first, second = [await door.get(await door.link()) for _ in range(2)]
    both = first.cookies | second.cookies
    for opened, account in ((first, "acct_ada"), (second, "acct_bob")):
        assert (await door.get(await door.consent(opened, login_hint=account), both)).status == 200
    assert {account for _, account in await door.connections()} == {"acct_ada", "acct_bob"}


async def test_what_came_back_holds_once_and_so_does_its_link(door: Door) -> None:
    link = await door.link()
    opened = await door.get(link)
    back = await door.consent(opened)
    assert (await door.get(back, opened.cookies)).status == 200
    assert (await door.get(back, opened.cookies)).status == 404
    assert (await door.get(link)).status == 404


async def test_an_owner_who_says_no_is_led_back_too(door: Door) -> None:
    opened = await door.get(await door.link(return_url=RETURN))
    state = opened.location.query["state"]
    refused = f"{CALLBACK}?error=access_denied&state={state}"
    ended = await door.get(refused, opened.cookies)
    assert ended.status == 302 and ended.location.query == {"status": "denied"}
    assert await door.connections() == []


async def test_the_cookie_is_for_this_host_alone_over_tls_and_not_for_scripts(door: Door) -> None:
    opened = await door.get(await door.link())
    said = opened.headers["Set-Cookie"]
    assert said.startswith(COOKIE)
    words = {word.strip().lower() for word in said.split(";")[1:]}
    assert {"secure", "httponly", "samesite=lax", "path=/", "max-age=600"} <= words
    assert not any(word.startswith("domain") for word in words)
    back = await door.get(await door.consent(opened), opened.cookies)
    assert "max-age=0" in back.headers["Set-Cookie"].lower()


NOWHERE: Final = (
    ("/connect/nothing", 404),
    (f"/connect/{'A' * 86}", 404),
    (CALLBACK, 404),
    (f"{CALLBACK}?state=a&state=b", 400),
    (f"{CALLBACK}?state={'a' * 5000}", 400),
    (f"{CALLBACK}?state=%ff%00&code=<script>", 404),
    ("/connect/", 404),
)


async def test_what_no_link_leads_to_is_a_page_that_nobody_keeps(door: Door) -> None:
    for path, status in NOWHERE:
        answer = await door.get(path)
        assert answer.status == status, path
        assert HEADERS.items() <= answer.headers.items()
        assert "script" not in answer.text and answer.text.count("<p>") == 1


async def test_only_get_opens_a_link(door: Door) -> None:
    link = await door.link()
    async with door.session.head(door.url + link, allow_redirects=False) as answer:
        assert answer.status == 405
    assert await (await door.admin.execute("SELECT FROM registry.oauth_flows")).fetchall() == []


async def test_while_the_registry_is_away_a_page_says_to_try_again(door: Door) -> None:
    link = await door.link()
    door.service.fault = Unavailable("away")
    answer = await door.get(link)
    assert answer.status == 503 and "in a minute" in answer.text
    assert answer.headers["Retry-After"].isdigit()
    door.service.fault = None
    assert (await door.get(link)).status == 302
