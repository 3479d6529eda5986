"""Tricks that lead a request to where it must not go: none reaches a server on loopback."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import cycle

import pytest

from services.chassis.egress import (
    ConnectFailed,
    Egress,
    EgressError,
    EgressRefused,
    NotPermitted,
    Request,
    Unsendable,
    parse_allow,
)
from services.chassis.endpoint_limits import Only, parse_only
from tests.unit.egress.conftest import LIMITS, Raw, StartRaw, get

PUBLIC, PUBLIC_TOO = "93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"

LITERALS: Mapping[str, Sequence[str]] = {
    "plain": ("127.0.0.1", "127.0.0.1.", "127.255.255.254", "127.0.0.2", "0.0.0.0", "0"),
    "internal": (
        *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "198.18.0.1"),
        *("192.0.2.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
    ),
    "metadata": (
        *("169.254.169.254", "169.254.170.2", "100.100.100.200", "192.0.0.192", "168.63.129.16"),
        *("2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "[fd00:ec2::254]"),
        *("[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]", "[fd20:ce::254]"),
    ),
    "short": ("127.1", "127.0.1", "127.0.0.1..", "127..1", "127.", ".127.0.0.1"),
    "decimal": ("2130706433", "2130706433.", "02130706433", "4294967295", "127.65535", "127.0.257"),
    "octal": (
        "017700000001",
        "0177.0.0.1",
        "0177.1",
        "00177.0.0.01",
        "127.0.0.01",
        "0000000.0.0.0",
    ),
    "hex": ("0x7f000001", "0x7F000001", "0x7f.1", "0x7f.0x0.0x0.0x1", "0x7f.0.0.1", "0x0"),
    "mixed": ("0x7f.0.0.01", "0177.0x0.0.1", "127.0x1", "0x7f.000.1", "127.0.0x0001"),
    "overflow": ("4294967296", "383.0.0.1", "127.0.0.257", "0x17f000001", "36893488149549842433"),
    "ipv6": (
        *("[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[0000::0001]", "[::0.0.0.1]", "[::127.0.0.1]"),
        *("[fe80::1]", "[fec0::1]", "[fc00::1]", "[fd12:3456::1]", "[ff02::1]", "[ff0e::1]"),
        *("[100::1]", "[100:0:0:1::1]", "[2001:db8::1]", "[3fff::1]", "[5f00::1]", "[1::1]"),
        *("[2001::1]", "[2001:0:7f00:1::]", "[2001:20::1]"),
    ),
    "zone": ("[::1%25lo]", "[::1%lo]", "[fe80::1%251]", "[fe80::1%eth0]", "[::1%25]"),
    "mapped": (
        *("[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::FFFF:127.0.0.1]", "[::ffff:0:127.0.0.1]"),
        *("[0:0:0:0:0:ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "[::ffff:0.0.0.0]", "[::7f00:1]"),
    ),
    "carried": (
        *("[64:ff9b::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b::10.0.0.1]", "[64:ff9b::a00:1]"),
        *("[64:ff9b:1::127.0.0.1]", "[64:ff9b:1:7f00:0:100::]", "[64:ff9b:1::808:808]"),
        *("[2002:7f00:1::]", "[2002:a00:1::1]", "[2002:a9fe:a9fe::]", "[2002:808:808::1]"),
    ),
    "not an address": ("[]", "[127.0.0.1]", "[localhost]", "[::1", "::1", "[::1]x", "[1:2:3]"),
    "name": ("localhost", "LOCALHOST", "LocalHost.", "localhost..", "localhost.localdomain"),
    "unicode": (
        *(
            "ｌｏｃａｌｈｏｓｔ",
            "１２７.０.０.１",
            "①②⑦.⓪.⓪.①",
            "127。0。0。1",
            "127．0．0．1",
            "127｡0｡0｡1",
        ),
        *(
            "loc\u00adalhost",
            "local\u200bhost",
            "lo\u0441alhost",
            "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ",
            "١٢٧.٠.٠.١",
            "㏂.test",
        ),
    ),
    "percent": (
        *("127%2e0%2e0%2e1", "%6cocalhost", "%31%32%37.0.0.1", "127.0.0.1%00.public.test"),
        *("127.0.0.1%2f", "%5b::1%5d", "localhost%23.public.test", "%EF%BD%8C%EF%BD%8Fcalhost"),
    ),
    "punycode": ("xn--localhost-", "xn--127-0-0-1", "xn--", "xn--a", "xn--0.localhost"),
}
"""Hosts, by family; each stands in `http://HOST:PORT/`, where PORT is a listening server's."""

URLS: Mapping[str, Sequence[str]] = {
    "user": (
        *("http://public.test@127.0.0.1:{port}/", "http://public.test:80@127.0.0.1:{port}/"),
        *(
            "http://a:b@c@127.0.0.1:{port}/",
            "http://@127.0.0.1:{port}/",
            "http://:@localhost:{port}/",
        ),
        *("http://127.0.0.1:{port}@public.test/", "http://public.test%40127.0.0.1:{port}/"),
    ),
    "confusion": (
        *("http://127.0.0.1:{port}\\@public.test/", "http://public.test\\@127.0.0.1:{port}/"),
        *(
            "http://public.test\\.127.0.0.1:{port}/",
            "http:\\\\127.0.0.1:{port}/",
            "http:/\\127.0.0.1:{port}",
        ),
        *("http://127.0.0.1:{port}#@public.test/", "http://127.0.0.1:{port}?@public.test/"),
        *("http://127.0.0.1:{port}/#public.test", "http://127.0.0.1:{port};public.test/"),
        *("http://public.test,127.0.0.1:{port}/", "http://127.0.0.1 public.test:{port}/"),
        *(
            "http:///127.0.0.1:{port}/",
            "http:127.0.0.1:{port}/",
            "//127.0.0.1:{port}/",
            "127.0.0.1:{port}",
        ),
        *(
            "http://[::1]@public.test:{port}/",
            "http://[::ffff:127.0.0.1]:{port}:80/",
            "http://[[::1]]:{port}/",
        ),
    ),
    "scheme": (
        *("file:///etc/passwd", "file://127.0.0.1:{port}/", "gopher://127.0.0.1:{port}/_x"),
        *("ftp://127.0.0.1:{port}/", "ws://127.0.0.1:{port}/", "wss://127.0.0.1:{port}/"),
        *("dict://127.0.0.1:{port}/", "ldap://127.0.0.1:{port}/", "unix:///tmp/x", "data:,x"),
        *("http+unix://127.0.0.1:{port}/", "jar:http://127.0.0.1:{port}!/", "://127.0.0.1:{port}/"),
        *("tcp://127.0.0.1:{port}/", "HTTP://127.0.0.1:{port}/", "https://127.0.0.1:{port}/"),
    ),
    "port": (
        *(
            "http://127.0.0.1:0/",
            "http://127.0.0.1:65536/",
            "http://127.0.0.1:-1/",
            "http://127.0.0.1:+80/",
        ),
        *(
            "http://127.0.0.1:22/",
            "http://127.0.0.1:25/",
            "http://127.0.0.1:6379/",
            "http://127.0.0.1/",
        ),
        *("http://127.0.0.1:00{port}/", "http://127.0.0.1:8\u0660/", "http://127.0.0.1:{port}a/"),
        *("http://127.0.0.1:/", "http://127.0.0.1:{port}%00/", "http://127.0.0.1: {port}/"),
    ),
    "white space": (
        *(" http://127.0.0.1:{port}/", "http://127.0.0.1:{port}/\n", "ht\ntp://127.0.0.1:{port}/"),
        *(
            "http://127.0.0.1\t:{port}/",
            "http://\t127.0.0.1:{port}/",
            "http://127.0.0.1:{port}/\r\nX: y",
        ),
        *(
            "http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: x",
            "http://127.0.0.1\r\n:{port}/",
            "\x00http://127.0.0.1:{port}/",
        ),
        *(
            "http://127.0.0.1:{port}/\x7f",
            "http://127.0.0.1\u2028:{port}/",
            "http://127.0.0.1\u3000:{port}/",
        ),
    ),
}
"""Whole URLs, by family."""

ANSWERS: Mapping[str, Sequence[str]] = {
    "loopback.test": ("127.0.0.1",),
    "six.test": ("::1",),
    "both.test": ("::1", "127.0.0.1"),
    "mapped.test": ("::ffff:127.0.0.1",),
    "any.test": ("0.0.0.0",),
    "any-six.test": ("::",),
    "metadata.test": ("169.254.169.254",),
    "private.test": ("10.0.0.1", "192.168.0.1", "172.16.0.1"),
    "nat64.test": ("64:ff9b::7f00:1",),
    "sixtofour.test": ("2002:7f00:1::",),
    "zone.test": ("fe80::1%lo",),
    "127.0.0.1.nip.test": ("127.0.0.1",),
    "localhost.public.test": ("127.0.0.1",),
    "xn--lcalhost-q4a.test": ("127.0.0.1",),
    "_dmarc.test": ("127.0.0.1",),
}
"""What a resolver says of names that are made to lead inside."""

# The system's resolver answers these by itself.
_WITHOUT_DNS = re.compile(r"(?i)[0-9a-fx.:]+|localhost\.?")

TRICKS = [
    *(
        pytest.param(f"http://{host}:{{port}}/", id=f"{family}-{host!a}")
        for family, hosts in {**LITERALS, "resolved": list(ANSWERS)}.items()
        for host in hosts
    ),
    *(pytest.param(url, id=f"{family}-{url!a}") for family, urls in URLS.items() for url in urls),
]


class Canary:
    """Listens on loopback, in both families, and counts who comes."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.visits = 0


class Network:
    """What a resolver answers, and which addresses are dialled; nothing leaves the machine."""

    def __init__(self) -> None:
        self.answers: dict[str, Iterator[Sequence[str]]] = {
            name: cycle([addresses]) for name, addresses in ANSWERS.items()
        }
        self.dialled: list[str] = []


@pytest.fixture
async def canary() -> AsyncIterator[Canary]:
    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.visits += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    four = await asyncio.start_server(visit, "127.0.0.1", 0)
    found = Canary(four.sockets[0].getsockname()[1])
    six = await asyncio.start_server(visit, "::1", found.port)
    yield found
    four.close()
    six.close()


@pytest.fixture
async def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    loop = asyncio.get_running_loop()
    real_look_up, real_dial = loop.getaddrinfo, loop.sock_connect
    here = Network()

    async def look_up(host: str, port: int, **more: int) -> object:
        if host in here.answers:
            return [_info(each, port) for each in next(here.answers[host])]
        if not _WITHOUT_DNS.fullmatch(host):
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return await real_look_up(host, port, **more)

    async def dial(sock: socket.socket, address: tuple[str, int]) -> None:
        here.dialled.append(address[0])
        if address[0] in (PUBLIC, PUBLIC_TOO):
            raise ConnectionRefusedError(111, "refused")
        await real_dial(sock, address)

    monkeypatch.setattr(loop, "getaddrinfo", look_up)
    monkeypatch.setattr(loop, "sock_connect", dial)
    return here


def _info(address: str, port: int) -> tuple[int, int, int, str, tuple[object, ...]]:
    if ":" in address:
        plain, _, zone = address.partition("%")
        there = (plain, port, 0, socket.if_nametoindex(zone) if zone else 0)
        return socket.AF_INET6, socket.SOCK_STREAM, 6, "", there
    return socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)


def test_there_are_many_tricks_and_each_is_another() -> None:
    assert len({each.values[0] for each in TRICKS}) == len(TRICKS) > 120


@pytest.mark.parametrize("trick", TRICKS)
async def test_no_trick_leads_inside(canary: Canary, network: Network, trick: str) -> None:
    async with Egress((), LIMITS) as out:
        with pytest.raises(EgressError) as refused:
            await out.send(get(trick.replace("{port}", str(canary.port))))
    assert isinstance(refused.value, EgressRefused | Unsendable) or refused.value.fault == "dns"
    assert not network.dialled
    assert not canary.visits


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "0x7f000001", "0x7f.1", "[::1]", "both.test", "127.0.0.1.nip.test"],
)
async def test_the_canary_is_there_for_those_who_may_go(
    canary: Canary, network: Network, host: str
) -> None:
    rules = parse_allow(f"127.0.0.1/32:{canary.port},[::1]/128:{canary.port}")
    async with Egress(rules, LIMITS) as out:
        assert (await out.send(get(f"http://{host}:{canary.port}/"))).status == 200
    assert network.dialled
    assert canary.visits == 1


async def test_a_name_that_changes_its_answer_is_only_ever_dialled_outside(
    canary: Canary, network: Network
) -> None:
    network.answers["rebinding.test"] = cycle([(PUBLIC,), ("127.0.0.1",), ("::1",)])
    told = []
    for _ in range(6):
        async with Egress((), LIMITS) as out:
            with pytest.raises(EgressError) as failed:
                await out.send(get(f"http://rebinding.test:{canary.port}/"))
        told.append(failed.value.fault)
    assert told == ["connect", "refused", "refused"] * 2
    assert network.dialled == [PUBLIC] * 2
    assert not canary.visits


@pytest.mark.parametrize(
    "answers",
    [
        (PUBLIC, "127.0.0.1"),
        ("127.0.0.1", PUBLIC),
        ("::1", "10.0.0.1", PUBLIC, "127.0.0.1", PUBLIC_TOO, "169.254.169.254"),
        (PUBLIC_TOO, "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"),
    ],
)
async def test_of_many_addresses_each_one_is_checked(
    canary: Canary, network: Network, answers: Sequence[str]
) -> None:
    network.answers["many.test"] = cycle([answers])
    async with Egress((), LIMITS) as out:
        with pytest.raises(ConnectFailed):
            await out.send(get(f"http://many.test:{canary.port}/"))
    assert set(network.dialled) == {PUBLIC, PUBLIC_TOO} & set(answers)
    assert not canary.visits


@pytest.mark.parametrize("status", [300, 301, 302, 303, 305, 307, 308])
@pytest.mark.parametrize("where", ["http://127.0.0.1:{port}/", "//localhost:{port}/", "file:///x"])
async def test_no_redirect_leads_inside(
    canary: Canary, raw_server: StartRaw, status: int, where: str
) -> None:
    where = where.replace("{port}", str(canary.port))
    head = (
        f"HTTP/1.1 {status} x\r\nLocation: {where}\r\nRefresh: 0;url={where}\r\nAlt-Svc: h2={where}"
    )
    site = await raw_server(_answering(head.encode() + b"\r\nContent-Length: 0\r\n\r\n"))
    rules = parse_allow(f"127.0.0.1/32:{site.port}")
    async with Egress(rules, LIMITS) as out:
        answer = await out.send(Request("POST", f"{site.url}/", body=b"x"))
    assert (answer.status, answer.headers["location"]) == (status, where)
    assert not canary.visits


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("X-A", f"b{end}Host: 127.0.0.1") for end in ("\r\n", "\n", "\r", "\0", "\x0b", "\r\n ")),
        *((f"X-A{end}Host", "127.0.0.1") for end in (": b\r\n", "\r\n", "\n", "\0", " ", ":")),
        *((name, "127.0.0.1") for name in ("Host", "hOST", "Transfer-Encoding", "Content-Length")),
        *((name, "x") for name in ("Connection", "Upgrade", "Proxy-Authorization", "Expect")),
    ],
)
async def test_no_header_forges_a_request(
    canary: Canary, network: Network, name: str, value: str
) -> None:
    rules = parse_allow(f"127.0.0.1/32:{canary.port}")
    async with Egress(rules, LIMITS) as out:
        with pytest.raises(Unsendable):
            await out.send(Request("GET", f"http://127.0.0.1:{canary.port}/", {name: value}))
    assert not network.dialled
    assert not canary.visits


@pytest.mark.parametrize("name", sorted(ANSWERS))
async def test_where_a_name_leads_is_told_to_the_operators_log_alone(
    canary: Canary, network: Network, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Egress((), LIMITS) as out:
        with pytest.raises(EgressRefused, match="setting EGRESS_ALLOW") as refused:
            await out.send(get(f"http://{name}:{canary.port}/"))
    error = refused.value
    told = (str(error), repr(error), str(error.args), error.message, str(error.metadata))
    shown = " ".join(told).replace(name, "")
    assert not [each for each in error.addresses if each in shown]
    assert error.__context__ is None
    assert len(error.addresses) == len(set(error.addresses)) >= 1
    assert ", ".join(error.addresses) in caplog.text


async def test_no_name_leads_a_plain_connection_inside(canary: Canary, network: Network) -> None:
    hosts = {each.strip("[]") for family in LITERALS.values() for each in family} | set(ANSWERS)
    # To a resolver an octal number, of somebody else's address.
    hosts.remove("02130706433")
    async with Egress((), LIMITS) as out:
        for host in sorted(hosts):
            with pytest.raises(EgressError) as refused:
                await out.dial(host, canary.port, timeout_s=5)
            assert refused.value.__context__ is None
            if isinstance(refused.value, EgressRefused):
                shown = str(refused.value).replace(host, "")
                assert not [each for each in refused.value.addresses if each in shown]
    assert not network.dialled and not canary.visits


async def test_a_plain_connection_goes_to_what_was_checked_and_the_name_is_asked_for_once(
    canary: Canary, network: Network
) -> None:
    rebound = iter([(PUBLIC, "10.0.0.1", PUBLIC_TOO), ("127.0.0.1",)])
    network.answers["rebound.test"] = rebound
    network.answers["mixed.test"] = cycle([("10.0.0.1", "127.0.0.1")])
    async with Egress((), LIMITS) as out:
        with pytest.raises(ConnectFailed):
            await out.dial("rebound.test", canary.port, timeout_s=5)
    assert network.dialled == [PUBLIC, PUBLIC_TOO] and list(rebound) == [("127.0.0.1",)]
    async with Egress(parse_allow(f"127.0.0.1/32:{canary.port}"), LIMITS) as out:
        _, writer = await out.dial("mixed.test", canary.port, timeout_s=5)
        writer.close()
    assert network.dialled[2:] == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("only", "permitted"),
    [
        (parse_only(networks=["127.0.0.0/8"]), True),
        (parse_only(networks=["198.51.100.0/24"]), False),
        (parse_only(endpoints=["https://127.0.0.1"]), False),
    ],
)
async def test_a_plain_connection_keeps_to_the_limits_of_its_credential(
    canary: Canary, network: Network, only: Only, *, permitted: bool
) -> None:
    async with Egress(parse_allow(f"127.0.0.1/32:{canary.port}"), LIMITS) as out:
        with nullcontext() if permitted else pytest.raises(NotPermitted):
            _, writer = await out.dial("127.0.0.1", canary.port, only=only, timeout_s=5)
            writer.close()
    assert network.dialled == ["127.0.0.1"] * permitted


def _answering(answer: bytes) -> Raw:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    return respond
