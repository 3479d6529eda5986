import asyncio
import socket

import pytest

from services.chassis import errors
from services.chassis.egress import (
    OWNED_HEADERS,
    ConnectFailed,
    Egress,
    EgressRefused,
    Limits,
    Request,
    Response,
    Unsendable,
    parse_allow,
)
from tests.unit.egress.conftest import LIMITS, MIXED, Server, get


async def test_a_request_arrives_as_it_was_written_and_its_answer_comes_back(
    server: Server, egress: Egress
) -> None:
    request = Request(
        "POST",
        f"{server.url}/echo/a%2Fb/../c?q=a+b%20c",
        {"X-Mine": "1", "User-Agent": "me"},
        b"body",
    )
    answer = await egress.send(request)
    assert answer.status == 200
    assert answer.body == b"POST /echo/a%2Fb/../c?q=a+b%20c body"
    assert answer.headers["x-two"] == "a, b"
    arrived = server.seen[0].headers
    assert (arrived["X-Mine"], arrived["User-Agent"]) == ("1", "me")
    assert arrived["Content-Length"] == "4"
    assert "Content-Type" not in arrived


async def test_an_error_status_is_an_answer(server: Server, egress: Egress) -> None:
    assert (await egress.send(get(f"{server.url}/absent"))).status == 404


async def test_a_large_body_goes_out_whole(server: Server, egress: Egress) -> None:
    async with Egress(server.allow, Limits(response_bytes=2**23)) as out:
        body = b"x" * (2**22)
        answer = await out.send(Request("PUT", f"{server.url}/echo", body=body))
    assert answer.body == b"PUT /echo " + body


async def test_a_request_without_a_body_says_so(server: Server, egress: Egress) -> None:
    await egress.send(Request("POST", f"{server.url}/echo"))
    assert server.seen[0].headers["Content-Length"] == "0"


async def test_a_redirect_is_an_answer_and_is_not_followed(server: Server, egress: Egress) -> None:
    answer = await egress.send(get(f"{server.url}/redirect"))
    assert (answer.status, answer.headers["location"]) == (302, "/echo")
    assert [request.path for request in server.seen] == ["/redirect"]


async def test_cookies_of_one_answer_do_not_go_with_the_next_request(
    server: Server, egress: Egress
) -> None:
    await egress.send(get(f"{server.url}/cookie"))
    await egress.send(get(f"{server.url}/echo"))
    assert "Cookie" not in server.seen[1].headers


async def test_proxies_of_the_environment_are_not_used(
    server: Server, egress: Egress, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert (await egress.send(get(f"{server.url}/echo"))).status == 200


async def test_neither_request_nor_answer_shows_what_it_carries(server: Server) -> None:
    request = Request("GET", "https://x.test/?key=canary", {"Authorization": "canary"}, b"canary")
    assert "canary" not in repr(request)
    assert "canary" not in repr(Response(200, {"x": "canary"}, b"canary"))


async def test_without_a_rule_loopback_is_refused_and_nothing_arrives(server: Server) -> None:
    async with Egress((), LIMITS) as out:
        with pytest.raises(EgressRefused, match="setting EGRESS_ALLOW") as refused:
            await out.send(get(f"{server.url}/echo"))
    assert refused.value.addresses == ("127.0.0.1",)
    assert refused.value.fault == "refused"
    assert not server.seen


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1.", "localhost", "LOCALHOST", "localhost.", "0.0.0.0"),
        *("127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0x7f.0.0.1", "017700000001"),
        *("0177.0.0.1", "0177.1", "127.0.0.01", "127.0.0.1..", "127%2e0%2e0%2e1", "%6cocalhost"),
        *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]"),
        *("[0:0:0:0:0:ffff:127.0.0.1]", "[::1%25lo]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]"),
        *("169.254.169.254", "[fe80::1]", "[fd00:ec2::254]", "10.0.0.1", "[::ffff:a9fe:a9fe]"),
    ],
)
async def test_no_way_of_writing_an_internal_host_leads_there(server: Server, host: str) -> None:
    async with Egress((), LIMITS) as out:
        with pytest.raises((EgressRefused, Unsendable, ConnectFailed)) as refused:
            await out.send(get(f"http://{host}:{server.port}/echo"))
    assert not server.seen
    # Not even tried: whatever fails by connecting has not been refused, save a name unknown.
    assert not isinstance(refused.value, ConnectFailed) or "not known" in str(refused.value)


async def test_a_refusal_names_the_host_and_never_the_address_behind_it(server: Server) -> None:
    async with Egress((), LIMITS) as out:
        with pytest.raises(EgressRefused) as refused:
            await out.send(get(f"http://localhost:{server.port}/echo"))
    assert f"localhost:{server.port}" in str(refused.value)
    assert "127.0.0.1" not in str(refused.value)
    assert "::1" not in str(refused.value)
    assert isinstance(refused.value, errors.FailedPrecondition)


async def test_a_host_is_permitted_by_its_name_and_not_by_its_address(server: Server) -> None:
    async with Egress(parse_allow(f"localhost:{server.port}"), LIMITS) as out:
        assert (await out.send(get(f"http://localhost:{server.port}/echo"))).status == 200
        with pytest.raises(EgressRefused):
            await out.send(get(f"{server.url}/echo"))


async def test_a_kept_connection_is_not_lent_to_another_host_name(server: Server) -> None:
    """The allowed name's connection is in the pool; the address itself stays refused."""
    async with Egress(parse_allow(f"localhost:{server.port}"), LIMITS) as out:
        for _ in range(3):
            await out.send(get(f"http://localhost:{server.port}/echo"))
            with pytest.raises(EgressRefused):
                await out.send(get(f"http://127.0.0.1:{server.port}/echo"))


async def test_a_name_whose_address_turns_internal_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the name was public when it was looked at, and is loopback when dialled."""

    async def rebound(*args: object, **kwargs: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", rebound)
    async with Egress((), LIMITS) as out:
        with pytest.raises(EgressRefused):
            await out.send(get(f"http://public.test:{server.port}/echo"))
    assert not server.seen


async def test_of_a_mixed_name_only_the_permitted_address_is_dialled(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def mixed(*args: object, **kwargs: object) -> list[object]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, server.port)) for address in MIXED
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", mixed)
    async with Egress(server.allow, LIMITS) as out:
        assert (await out.send(get(f"http://mixed.test:{server.port}/echo"))).status == 200


async def test_a_mixed_name_whose_permitted_address_fails_has_failed_to_connect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def mixed(*args: object, **kwargs: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 9)) for one in MIXED]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", mixed)
    async with Egress(parse_allow("127.0.0.1:9"), LIMITS) as out:
        with pytest.raises(ConnectFailed) as failed:
            await out.send(get("http://mixed.test:9/"))
    assert not any(one in str(failed.value) for one in MIXED)


@pytest.mark.parametrize(
    "url",
    [
        *("", "x", "/path", "//h/x", "ftp://h/", "file:///etc/passwd", "unix:///x", "gopher://h/"),
        *("http://", "http:///x", "http://:80/", "http://h:0/", "http://h:99999/", "http://h:x/"),
        *("http://user@h/", "http://user:canary@h/", "http://@h/", "http://h\\@i/", "http://[::1/"),
        *(
            "http://h/a b",
            "http://h/ä",
            "http://h/\r\nX: y",
            "http://h/\x00",
            "http://ｈ/",
            " http://h/",
        ),
        *("http://h,i/", "http://h;i/", "http://h%2ei/", "http://h'/", "http://[::1%25lo]/"),
        *("http://h/\t", "http://h/\n", "http://h..i/", f"http://{'h' * 64}.test/"),
    ],
)
async def test_a_url_that_is_not_plain_http_is_not_sent(url: str) -> None:
    async with Egress(parse_allow("h:*"), LIMITS) as out:
        with pytest.raises(Unsendable) as refused:
            await out.send(get(url))
    assert refused.value.fault == "unsendable"
    assert "canary" not in str(refused.value)
    assert refused.value.__context__ is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("X-A", "b\r\nX-C: canary"),
            ("X-A", "b\n"),
            ("X-A", "\0"),
            ("X-A", "\x7f"),
            ("X-A", "\ud800"),
        ),
        *(("", "v"), ("X A", "v"), ("X-A:", "v"), ("X\r\n", "v"), ("Ä", "v")),
        *((name, "v") for name in sorted(OWNED_HEADERS)),
        ("HOST", "metadata"),
    ],
)
async def test_a_header_that_could_forge_a_message_is_not_sent(
    server: Server, egress: Egress, name: str, value: str
) -> None:
    with pytest.raises(Unsendable) as refused:
        await egress.send(Request("GET", f"{server.url}/echo", {name: value}))
    assert "canary" not in str(refused.value)
    assert not server.seen


@pytest.mark.parametrize("method", ["", "GE T", "GET\r\n", "CONNECT", "connect", "TRACE"])
async def test_a_method_that_is_not_a_plain_request_is_not_sent(
    server: Server, egress: Egress, method: str
) -> None:
    with pytest.raises(Unsendable):
        await egress.send(Request(method, f"{server.url}/echo"))
    assert not server.seen
