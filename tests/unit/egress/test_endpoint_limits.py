"""A credential goes to its allowed endpoints and networks, however the URL is written."""

import asyncio
import posixpath
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from services.chassis.egress import Egress, EgressRefused, NotPermitted, Request, parse_allow
from services.chassis.endpoint_limits import (
    BadEndpointLimit,
    Only,
    network_problem_of,
    parse_only,
    problem_of,
)
from services.chassis.errors import FailedPrecondition
from services.chassis.secret import Secret
from services.providers.auth import Credential
from services.providers.calls import Call, Integration
from services.providers.catalog import Catalog
from services.providers.client import ProviderClient
from tests.unit.egress.conftest import LIMITS, Server, StartRaw


@pytest.mark.parametrize(
    ("pattern", "url"),
    [
        ("https://api.example.com", "https://api.example.com"),
        ("https://api.example.com", "https://api.example.com/any/thing?q=1"),
        ("https://api.example.com/", "https://api.example.com:443/x"),
        ("https://api.example.com:443/*", "https://api.example.com/"),
        ("HTTPS://API.Example.com.", "https://api.EXAMPLE.com/"),
        ("https://api.example.com", "https://API.example.com./"),
        ("https://bücher.example", "https://xn--bcher-kva.example/"),
        ("https://BÜCHER.example", "https://XN--BCHER-KVA.example/"),
        ("https://api.example.com:8443", "https://api.example.com:8443/"),
        ("https://*.example.com", "https://api.example.com/"),
        ("https://*.example.com", "https://a.b.example.com/"),
        ("https://api.example.com/v1", "https://api.example.com/v1"),
        ("https://api.example.com/v1", "https://api.example.com/v1?q=/v2/.."),
        ("https://api.example.com/v1", "https://api.example.com/v1/"),
        ("https://api.example.com/v1/", "https://api.example.com/v1"),
        ("https://api.example.com/v1", "https://api.example.com/v1/a/b"),
        ("https://api.example.com/v1/*", "https://api.example.com/v1/a/b"),
        ("https://api.example.com/v1", "https://api.example.com/v1/a%2Fb"),
        ("https://api.example.com/a%2Fb", "https://api.example.com/a%2Fb/c"),
        ("https://198.51.100.7/hook", "https://198.51.100.7/hook"),
        ("https://[2001:db8::1]:8443", "https://[2001:0db8:0:0::1]:8443/"),
        ("http://127.0.0.1:9911", "http://127.0.0.1:9911/echo"),
        ("http://localhost/", "http://localhost:80/echo"),
    ],
)
def test_a_pattern_covers(pattern: str, url: str) -> None:
    assert problem_of(pattern) is None
    assert parse_only([pattern]).permits_url(_read(url))
    assert parse_only(["https://other.test", pattern]).permits_url(_read(url))


@pytest.mark.parametrize(
    ("pattern", "url"),
    [
        ("https://api.example.com", "http://api.example.com/"),
        ("https://api.example.com", "http://api.example.com:443/"),
        ("https://api.example.com", "https://api.example.com:8443/"),
        ("https://api.example.com:8443", "https://api.example.com/"),
        ("https://api.example.com", "https://example.com/"),
        ("https://api.example.com", "https://xapi.example.com/"),
        ("https://api.example.com", "https://api.example.com.evil.test/"),
        ("https://api.example.com", "https://a.api.example.com/"),
        ("https://*.example.com", "https://example.com/"),
        ("https://*.example.com", "https://evilexample.com/"),
        ("https://*.example.com", "https://.example.com.evil.test/"),
        ("https://127.0.0.1", "https://127.1/"),
        ("https://127.0.0.1", "https://0x7f000001/"),
        ("https://api.example.com/v1", "https://api.example.com/"),
        ("https://api.example.com/v1", "https://api.example.com"),
        ("https://api.example.com/v1", "https://api.example.com/v10"),
        ("https://api.example.com/v1", "https://api.example.com/V1"),
        ("https://api.example.com/v1", "https://api.example.com/v1;x"),
        ("https://api.example.com/v1", "https://api.example.com//v1"),
        ("https://api.example.com/v1", "https://api.example.com/%761"),
        ("https://api.example.com/v1/*", "https://api.example.com/v1"),
        ("https://api.example.com/a/b", "https://api.example.com/a%2Fb"),
        ("https://api.example.com/a%2Fb", "https://api.example.com/a/b"),
        ("https://api.example.com/a%2Fb", "https://api.example.com/a%2fb"),
        *(
            ("https://api.example.com/v1", f"https://api.example.com/v1/{climb}admin")
            for climb in (
                *(
                    "../",
                    "./",
                    "a/../../",
                    "%2e%2e/",
                    "%2E%2e%2f",
                    ".%2e/",
                    "..%2f",
                    "..%5c",
                    "..\\",
                ),
                *(
                    "%252e%252e/",
                    "%25252e%25252e%25252f",
                    "..;/",
                    "..;x=1/",
                    "%2e%2e%3b/",
                    "a;..;..;",
                    "a;..;../",
                    "a//",
                    "/",
                ),
                *(
                    "%2f",
                    "..%00/",
                    "%00",
                    "%0d%0a",
                    "%c0%ae%c0%ae/",
                    "%ef%bc%8e%ef%bc%8e/",
                    "..%20/",
                ),
                *("%e2%80%a5/", "..%e3%80%80/", "%ff", "..%ef%bc%8f", "%25ef%25bc%258e./"),
            )
        ),
        ("https://api.example.com/*", "https://api.example.com/.."),
        ("https://api.example.com", "https://api.example.com/%2e"),
    ],
)
def test_a_pattern_does_not_cover(pattern: str, url: str) -> None:
    assert not parse_only([pattern]).permits_url(_read(url))


PIECES = st.sampled_from(
    [
        *(
            "v1",
            "admin",
            "a",
            "/",
            "//",
            ".",
            "..",
            "%2e",
            "%2E",
            "%252e",
            "%2f",
            "%252F",
            "%5c",
            "\\",
        ),
        *(";", "%3b", "%", "%25", "%20", "*", "%00", "~", "+", "%76", "1", "%ef%bc%8e", "%c0%ae"),
    ]
)


@given(st.lists(PIECES, max_size=8).map("".join), st.sampled_from(["/v1", "/v1/a", "/v1/*"]))
def test_no_path_that_is_covered_leads_elsewhere_on_any_server(path: str, prefix: str) -> None:
    url = _read(f"https://api.example.com/v1/{path}")
    if not parse_only([f"https://api.example.com{prefix}"]).permits_url(url):
        return
    read = url.raw_path
    for _ in range(6):
        for seen in (read, read.replace("\\", "/"), read.replace(";", "/")):
            resolved = posixpath.normpath(seen) + "/"
            assert resolved.startswith(prefix.removesuffix("*").rstrip("/") + "/")
        read = unquote(read)


UNREADABLE: Mapping[str, Sequence[str]] = {
    "must be https://host": (
        *("", "api.example.com", "https://", "https:///x", "https://u@h", "https://u:p@h/"),
        *("https://h:x", "https://h?q", "https://h#f", "https://[::1%25lo]", "https://h\\x"),
    ),
    "neither a name nor an address": (
        *("https://*", "https://a.*.b", "https://a*.example.com", "https://a b/", "https://a..b/"),
        *("https://-a.b/", "https://127.1/", "https://1.2.3.256/", "https://0x7f.1/"),
        *("https://[a]/", f"https://{'a' * 64}/", f"https://{'a.' * 127}aa/"),
    ),
    "must be https (": ("http://example.com", "ftp://h", "ws://h", "javascript://h"),
    "two labels": ("https://*.com", "https://*.127.0.0.1", "https://*.[::1]"),
    "has a port": ("https://h:0", "https://h:65536", "https://h:99999"),
    "only as the last part": (
        *("https://h/*/a", "https://h/a*", "https://h/*a", "https://h/**", "https://h/a/*/"),
    ),
    "has a path that": (
        *("https://h/..", "https://h/a/../b", "https://h/%2e%2e/a", "https://h/a//b"),
        *("https://h/%zz", "https://h/a?b", "https://h/#a", "https://h/?", "https://h/{id}"),
    ),
    "percent-encode": ("https://h/ä", "https://h/a b"),
}
"""What is said, and of which patterns."""


@pytest.mark.parametrize(
    ("words", "pattern"),
    [(words, pattern) for words, patterns in UNREADABLE.items() for pattern in patterns],
)
def test_a_pattern_that_cannot_be_read_says_why(words: str, pattern: str) -> None:
    problem = problem_of(pattern)
    assert problem is not None
    assert words in problem
    with pytest.raises(BadEndpointLimit, match="an allowed endpoint"):
        parse_only([pattern])


@pytest.mark.parametrize(
    "text", ["", "x", "10.0.0.1/8", "10.0.0.0/33", "0.0.0.0/0", "::/0", "10.1"]
)
def test_a_network_that_cannot_be_read_says_why(text: str) -> None:
    assert network_problem_of(text)
    with pytest.raises(BadEndpointLimit, match="an allowed network"):
        parse_only((), [text])


@given(st.text(max_size=40) | st.text(max_size=20).map("https://{}".format))
def test_any_text_is_a_pattern_or_has_a_problem(text: str) -> None:
    if problem_of(text) is None:
        parse_only([text])
    if network_problem_of(text) is None:
        parse_only((), [text])


@pytest.mark.parametrize(
    ("address", "permitted"),
    [
        *(("198.51.100.7", True), ("::ffff:198.51.100.7", True), ("2001:db8::1", True)),
        *(("198.51.101.7", False), ("2001:db8::2", False), ("64:ff9b::198.51.100.7", False)),
        ("no address", False),
    ],
)
def test_networks_hold_what_is_dialled(address: str, *, permitted: bool) -> None:
    only = parse_only((), ["198.51.100.0/24", "2001:db8::1"])
    assert only.permits_address(address) is permitted


def test_without_a_list_there_is_no_limit() -> None:
    assert Only().permits_url(_read("https://anywhere.test/a/../b"))
    assert Only().permits_address("10.0.0.1")


@pytest.mark.parametrize(
    "path", ["/", "/ech", "/echoes", "/echo/../x", "/echo/%2e%2e/x", "/echo//x", "/echo/..;/x"]
)
async def test_outside_its_endpoints_nothing_is_sent(
    server: Server, egress: Egress, path: str
) -> None:
    only = parse_only([f"{server.url}/echo"])
    with pytest.raises(NotPermitted) as refused:
        await egress.send(Request("POST", f"{server.url}{path}", body=b"x", only=only))
    assert not server.seen
    assert isinstance(refused.value, FailedPrecondition)
    assert (refused.value.code, refused.value.fault) == ("ENDPOINT_NOT_ALLOWED", "not_permitted")
    assert f"127.0.0.1:{server.port}" in str(refused.value)
    assert path == "/" or path not in str(refused.value)


async def test_inside_its_endpoints_and_networks_it_is_sent(server: Server, egress: Egress) -> None:
    only = parse_only([f"{server.url}/echo"], ["127.0.0.0/8"])
    answer = await egress.send(Request("GET", f"{server.url}/echo/x?q=1", only=only))
    assert answer.body == b"GET /echo/x?q=1 "


async def test_outside_its_networks_nothing_is_sent(server: Server, egress: Egress) -> None:
    only = parse_only((), ["198.51.100.0/24"])
    with pytest.raises(NotPermitted) as refused:
        await egress.send(Request("GET", f"http://localhost:{server.port}/echo", only=only))
    assert not server.seen
    assert f"localhost:{server.port}" in str(refused.value)
    assert "127.0.0.1" not in str(refused.value)


async def test_what_a_limit_allows_stays_refused_where_it_is_internal(server: Server) -> None:
    only = parse_only([server.url], ["127.0.0.1"])
    async with Egress((), LIMITS) as out:
        with pytest.raises(EgressRefused):
            await out.send(Request("GET", f"{server.url}/echo", only=only))
    assert not server.seen


class TwoHomes:
    """One name with two addresses, at each of which a server says which it is."""

    port: int


@pytest.fixture
async def two_homes(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TwoHomes]:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        here = writer.get_extra_info("sockname")[0].encode()
        while await reader.readline():
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n" + here)
        writer.close()

    async def look_up(host: str, port: int, **_: object) -> Sequence[object]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
            for each in ("127.0.0.1", "127.0.0.2")
        ]

    homes = TwoHomes()
    one = await asyncio.start_server(say, "127.0.0.1", 0)
    homes.port = one.sockets[0].getsockname()[1]
    two = await asyncio.start_server(say, "127.0.0.2", homes.port)
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
    yield homes
    one.close()
    two.close()


async def test_of_many_addresses_one_inside_the_networks_is_dialled(two_homes: TwoHomes) -> None:
    async with Egress(parse_allow("127.0.0.0/8:*"), LIMITS) as out:
        for address in ("127.0.0.2", "127.0.0.1"):
            only = parse_only((), [address])
            request = Request("GET", f"http://two.test:{two_homes.port}/", only=only)
            assert (await out.send(request)).body == address.encode()


async def test_a_kept_connection_is_not_lent_to_who_may_not_dial_it(two_homes: TwoHomes) -> None:
    url = f"http://two.test:{two_homes.port}/"
    async with Egress(parse_allow("127.0.0.0/8:*"), LIMITS) as out:
        kept = [Request("GET", url, only=parse_only((), ["127.0.0.1"])) for _ in range(3)]
        for answer in await asyncio.gather(*map(out.send, kept)):
            assert answer.body == b"127.0.0.1"
        limited = Request("GET", url, only=parse_only((), ["127.0.0.2"]))
        assert (await out.send(limited)).body == b"127.0.0.2"
        with pytest.raises(NotPermitted):
            await out.send(Request("GET", url, only=parse_only((), ["127.0.0.3"])))


async def test_every_call_with_a_credential_is_limited_as_it_is(
    raw_server: StartRaw,
) -> None:
    """A page within the base URL that the first page leads to, but the credential does not."""
    paths = []

    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        paths.append((await reader.readuntil(b"\r\n\r\n")).split()[1].decode())
        writer.write(
            b'HTTP/1.1 200 OK\r\nLink: </elsewhere>; rel="next"\r\nContent-Length: 2\r\n\r\n[]'
        )
        await writer.drain()

    server = await raw_server(page)
    only = parse_only([f"{server.url}/repos/acme"])
    credential = Credential("bearer", {"token": Secret("x")}, only)
    there = Integration("github", server.url, {"owner": "acme", "repo": "shop"}, credential)
    async with Egress(server.allow, LIMITS) as out:
        client = ProviderClient(out, Catalog.load())
        pages = client.pages(there, "list_issues")
        assert (await anext(pages)).status == 200
        with pytest.raises(NotPermitted):
            await anext(pages)
        with pytest.raises(NotPermitted):
            await client.send(there, Call("GET", "/user"))
        with pytest.raises(NotPermitted):
            await client.operate(there, "get_authenticated_user")
    assert [path.partition("?")[0] for path in paths] == ["/repos/acme/shop/issues"]


def _read(url: str) -> URL:
    return URL(url, encoded=True)
